"""On a node of the cluster: one job, in a process of its own, as ``launch=local`` would run it."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qsweep.base.scratch import ScratchFolder
from qsweep.base.version import __version__
from qsweep.launch.job import Event, Job
from qsweep.launch.local.client import ForkServer
from qsweep.launch.local.schedule import run_jobs
from qsweep.launch.local.slots import Slots
from qsweep.launch.logs import tail_of

# Reports of one step closer together than this do not travel.
_REPORT_EVERY_S = 0.5

# Ray's password among them.
_RAYS_OWN = ("RAY_",)

# Ray keeps its worker processes from task to task; so do these, and the imports are made once.
_servers: dict[tuple[str, ...], ForkServer] = {}


def versions() -> dict[str, str]:
    """What must be the same wherever a sweep's jobs run."""
    return {"qsweep": __version__, "Python": f"{sys.version_info[0]}.{sys.version_info[1]}"}


def why_unfit(wanted: Mapping[str, str]) -> str | None:
    """Why jobs of a launcher with these :func:`versions` must not run here, None if they may."""
    here = versions()
    differing = [name for name in here if here[name] != wanted[name]]
    return (
        "; ".join(f"{name} {here[name]} there, {wanted[name]} here" for name in differing) or None
    )


def run(
    order: Mapping[str, Any], gpus: Sequence[str], tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run one job.

    Args:
        order: What :func:`~qsweep.launch.ray.run.order_of` gives.
        gpus: The GPUs that Ray has set aside for it, as ``CUDA_VISIBLE_DEVICES`` spells them.
        tell: Takes what is worth showing: ``{"started": True}`` or ``{"step": …, "share": …}``.

    Returns:
        ``refused``, one line, if it cannot run here at all. Else ``result``, the fields of its
        :class:`~qsweep.launch.job.JobResult`, and ``log``, the end of its log, None where that
        lies where the launching process sees it.
    """
    if problem := why_unfit(order["versions"]):
        return {"refused": problem}
    os.environ.update(order["environment"])
    sys.path += [folder for folder in order["sys_path"] if folder not in sys.path]
    if os.path.isdir(order["cwd"]):
        os.chdir(order["cwd"])
    job = Job(**{**order["job"], "log": Path(order["job"]["log"]), "needs": ()})
    if len(gpus) > 1:
        job = replace(job, device="all")
    slots = Slots(1, tuple(gpus), threads=order["threads"])
    server = _servers.setdefault(tuple(order["preload"]), ForkServer(order["preload"], _RAYS_OWN))
    throttle = _Throttle(tell)
    if _is_seen(job.log, order["mark"]):
        done = run_jobs([job], slots=slots, on_event=throttle, server=server)
        return {"result": asdict(done[job.id]), "log": None}
    with ScratchFolder() as folder:
        job = replace(job, log=Path(folder) / job.log.name)
        done = run_jobs([job], slots=slots, on_event=throttle, server=server)
        return {"result": asdict(done[job.id]), "log": tail_of(job.log)}


def _is_seen(log: Path, mark: str) -> bool:
    """Whether a log lies on a file system that the launching process, which marked it, shares."""
    try:
        return log.read_text() == mark
    except (OSError, UnicodeDecodeError):
        return False


class _Throttle:
    """Tells of a job's start and of its steps, and not more often than anybody can read."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._step: str | None = None
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if event.kind == "started":
            self._tell({"started": True})
        elif event.kind == "progress":
            if event.step == self._step and now - self._last < _REPORT_EVERY_S:
                return
            self._step, self._last = event.step, now
            self._tell({"step": event.step, "share": event.share})
