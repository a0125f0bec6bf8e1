"""Jobs and results as the rows of a table have them. Pure."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qsweep.base.errors import QsweepError
from qsweep.base.keys import key_of
from qsweep.base.version import __version__
from qsweep.launch.job import Job, JobResult


def row_of(job: Job) -> dict[str, Any]:
    """The columns that describe a job."""
    spec = {
        "target": job.target,
        "payload": job.payload,
        "log": str(Path(job.log).absolute()),
        "timeout_s": job.timeout_s,
        "version": __version__,
    }
    return {
        "id": job.id,
        "name": job.name,
        "spec": json.dumps(spec),
        "fingerprint": fingerprint_of(job),
        "counts": job.counts,
        "device": job.device,
    }


def fingerprint_of(job: Job) -> str:
    """What tells two jobs of one id apart: what is called, and with what.

    Raises:
        TypeError, ValueError: its payload is not JSON.
    """
    return key_of([job.target, job.payload])


def job_of(row: Mapping[str, Any]) -> Job:
    """The job that a row describes, without its needs, which the queue looks after.

    Raises:
        QsweepError: another version planned it, which may mean something else by the same words.
    """
    spec = json.loads(row["spec"])
    if (version := spec.get("version", __version__)) != __version__:
        raise QsweepError(
            f"the sweep was planned by qsweep {version}, and this is {__version__}; install that "
            "version here, or start the sweep with this one"
        )
    return Job(
        id=row["id"],
        name=row["name"],
        target=spec["target"],
        payload=spec["payload"],
        log=Path(spec["log"]),
        timeout_s=spec["timeout_s"],
        device=row["device"],
        counts=row["counts"],
    )


def result_text(result: JobResult) -> str:
    """A result as JSON, without when it began, which the database knows by its own clock."""
    return json.dumps({k: v for k, v in asdict(result).items() if k != "started"})


def result_of(row: Mapping[str, Any]) -> JobResult:
    """The result that a row of a job that is done holds."""
    return JobResult(**json.loads(row["result"]), started=row["started"])
