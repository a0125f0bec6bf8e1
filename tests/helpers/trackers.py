"""Trackers: an outputs folder with its MLflow, servers, runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import machine
from helpers.typed import typed
from qsweep.base.files import write_json
from qsweep.results.write import write_results
from qsweep.tracking import SweepFolder, TrackingConfig
from qsweep.tracking.mlflow import MLflowTracker
from qsweep.tracking.mlflow.journal import TrackingTarget
from qsweep.tracking.settings import resolved_uri


def record(
    key: str = "k1", status: str = "finished", *, bits: int = 4, ratio: float = 1.07, **more
):
    measured = status == "finished"

    def measurement(corpus: str, preset: str, factor: float):
        return {
            "corpus": corpus,
            "preset": preset,
            "primary": (corpus, preset) == ("python_docs", "paper"),
            "key": "m",
            "metrics": {
                "ppl": 18.0 * ratio * factor,
                "ppl_ratio": ratio,
                "kld": 0.05,
                "quality": 0.6,
                "quality_per_gb": 100.0,
            },
            "facts": {"windows": 41, "fingerprint": "abc", "bos": None},
            "verdict": "usually",
            "file": "/nowhere",
        }

    return {
        "key": key,
        "status": status,
        "reason": None if measured else "out of memory",
        "sweep": "demo",
        "name": f"pocket gptq {bits}-bit",
        "reference": False,
        "model": "pocket",
        "method": "gptq",
        "backend": "gptqmodel",
        "options": {"bits": bits, "group_size": 128, "sym": True},
        "calibration": "python_docs",
        "artifact": {
            "path": "/a",
            "format": "gptq",
            "runtimes": ["vllm"],
            "size_gb": 0.006,
            "bpw": 4.25,
            "bpw_total": 5.0,
            "details": {},
        }
        if measured
        else None,
        "measurements": [
            measurement("python_docs", "paper", 1.0),
            measurement("python_docs", "strided", 0.9),
            measurement("python_code", "paper", 0.5),
        ]
        if measured
        else [],
        "speed": None,
        "quantize_s": 12.0 if measured else None,
        "evaluate_s": 20.0 if measured else None,
        "peak_memory_gb": 0.9 if measured else None,
        "ended": ENDED,
        "seconds": 33.0,
        "config": {"model": {"name": "pocket"}, "seed": 0, "desc_act": True, "bits": bits},
        "environment": {"python": "3.11", "git_commit": "0123abcd"},
        "command": "python -m qsweep -m bits=3,4",
        "log": None,
        "cached": False,
        **more,
    }


class Outputs:
    """An outputs folder with one sweep in it, logged to one experiment."""

    def __init__(self, root: Path, uri: str | None, name: str = "demo", experiment: str = "qsweep"):
        self.root, self.name = root, name
        self.config = TrackingConfig(uri=uri, experiment=experiment)
        self.place = TrackingTarget(resolved_uri(uri, root), experiment)
        self.directory = root / "sweeps" / name
        self.said: list[str] = []

    def write(self, *records: dict) -> None:
        facts = {"name": self.name, "command": "python -m qsweep", "started": ENDED}
        write_json(self.directory / "sweep.json", facts)
        for content in records:
            write_json(self.directory / "trials" / f"{content['key']}.json", content)

    def run(self, *records: dict, **finish) -> list[str]:
        """What a sweep does; returns what the tracker said."""
        self.write()
        self.said = []
        tracker = self.start(self.said)
        for content in records:
            self.write(content)
            tracker.log(typed(content))
        write_results(self.directory, typed(records))
        tracker.finish(typed(records), **finish)
        return self.said

    def start(self, said: list[str]) -> MLflowTracker:
        """The sweep's tracker, under way; what it says is appended to ``said``."""
        tracker = MLflowTracker(uri=self.config.uri, experiment=self.config.experiment)
        sweep = SweepFolder(self.name, "python -m qsweep", self.directory, self.root)
        tracker.start(sweep, said.append)
        return tracker

    def runs(self) -> list:
        return runs_in(self.place)

    def children(self) -> dict:
        found = [run for run in self.runs() if "qsweep.key" in run.data.tags]
        return {run.data.tags["qsweep.key"]: run for run in found}

    def parent(self):
        [run] = [run for run in self.runs() if "qsweep.sweep" in run.data.tags]
        return run


def client_of(uri: str):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_in(place: TrackingTarget) -> list:
    client = client_of(place.uri)
    experiment = client.get_experiment_by_name(place.experiment)
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """A migrated, empty database: making one takes seconds, copying one does not."""
    from qsweep.tracking.mlflow.connection import create_database

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    create_database(path)
    assert [p.name for p in path.parent.iterdir()] == ["empty.db"]
    return path


@pytest.fixture
def outputs(tmp_path: Path, empty_database: Path, monkeypatch) -> Outputs:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Outputs(tmp_path, None)


def start_server(folder: Path, port: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "server-artifacts")]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=environment
        )
    import urllib.error
    import urllib.request

    def answers() -> bool:
        assert server.poll() is None, (folder / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return True
        except (OSError, urllib.error.URLError):
            return False

    wait_until(answers, limit_s=200)
    return server


def wait_until(condition, limit_s: float = 60) -> None:
    assert machine.wait_until(condition, limit_s, pause_s=0.2), "waited too long"


ENDED = "2026-01-02T03:04:05+00:00"
