"""Whole sweeps, as a user runs them."""

import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SMALL = ["eval.max_windows=4", "calibration.num_samples=4", "tracking=none", "sweep=t"]


def command(outputs, *arguments):
    return [sys.executable, "-m", "qsweep", *arguments, *SMALL, f"outputs_dir={outputs}"]


def qsweep(outputs, *arguments, timeout=240):
    return subprocess.run(
        command(outputs, *arguments), capture_output=True, text=True, cwd=ROOT, timeout=timeout
    )


def rows(outputs, sweep="t"):
    with (outputs / "sweeps" / sweep / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
