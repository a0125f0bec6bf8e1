"""A real sweep on workers: its results are those of a local run, whoever dies on the way."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.machine import wait_until
from helpers.sweeps import command, qsweep

pytestmark = pytest.mark.slow
GRID = ["-m", "quant=gptq,rtn", "bits=3,4", "corpus=python_docs", "eval.noise_floor=false"]
GRID += ["device=cpu"]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """What the store holds after a local run."""
    outputs = tmp_path_factory.mktemp("local")
    assert qsweep(outputs, *GRID).returncode == 0
    return contents(outputs)


def contents(outputs: Path) -> dict[str, str]:
    """Every file of artifacts and measurements, and every figure, as far as no clock is in it."""
    found = {}
    for kind in ("artifacts", "measurements", "references"):
        for file in sorted((outputs / "store" / kind).rglob("*")):
            name = str(file.relative_to(outputs / "store"))
            if file.name == "manifest.json":
                content = json.loads(file.read_text())["content"]
                found[name] = json.dumps([content.get("metrics"), content.get("facts")])
            elif file.is_file() and file.suffix == ".safetensors":
                found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def test_workers_make_what_a_local_run_makes_bit_for_bit(local, tmp_path):
    done = qsweep(tmp_path, *GRID, "launch=workers", "launch.start=2")
    assert done.returncode == 0, done.stderr
    assert len(local) > 15 and contents(tmp_path) == local


def test_a_sweep_whose_head_is_killed_comes_to_the_same(local, tmp_path):
    words = command(tmp_path, *GRID, "launch=workers", "launch.start=1", "launch.lease_s=5")
    head = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = tmp_path / "sweeps" / "t" / "workers"
    # In the middle of the pass, on which all gptq trials wait.
    assert wait_until(lambda: said(log).count("started pocket one pass") == 1, 120)
    head.send_signal(signal.SIGKILL)
    head.communicate()
    assert wait_until(lambda: "sweep t is finished" in said(log), 180)
    done = qsweep(tmp_path, *GRID, "launch=workers")
    assert done.returncode == 0, done.stderr
    assert said(log).count("started pocket one pass") == 1
    assert contents(tmp_path) == local


def test_a_sweep_is_left_to_workers_and_collected(local, tmp_path):
    left = qsweep(tmp_path, *GRID, "launch=workers", "--detach")
    assert left.returncode == 0 and "the same command without --detach" in left.stdout
    status = subprocess.run(
        [sys.executable, "-m", "qsweep", "status", "t", f"--outputs={tmp_path}"],
        capture_output=True,
        text=True,
    ).stdout
    assert "ready" in status and "no worker is there; start one: qsweep worker t" in status
    words = [sys.executable, "-m", "qsweep", "worker", "t", f"--outputs={tmp_path}"]
    worker = subprocess.run(words, capture_output=True, text=True, timeout=250)
    assert worker.returncode == 0 and "sweep t is finished" in worker.stderr
    assert qsweep(tmp_path, *GRID, "launch=workers").returncode == 0
    assert contents(tmp_path) == local


def said(log: Path) -> str:
    return "".join(file.read_text() for file in log.glob("*.log"))
