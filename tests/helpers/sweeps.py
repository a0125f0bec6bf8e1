"""Whole sweeps, as a user runs them, and the rows that they leave."""

import contextlib
import csv
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from unittest import mock

from qsweep.commands.main import main
from qsweep.launch.local import ForkServer, LocalLauncher

ROOT = Path(__file__).resolve().parents[2]

SMALL = ["eval.max_windows=4", "calibration.num_samples=4", "tracking=none", "sweep=t"]


def command(outputs, *arguments):
    """The command line of a small sweep, for a process of its own."""
    return [sys.executable, "-m", "qsweep", *arguments, *SMALL, f"outputs_dir={outputs}"]


def qsweep(outputs, *arguments, env: Mapping[str, str] | None = None):
    """Run a small sweep here; see :func:`run_here`."""
    return run_here([*arguments, *SMALL, f"outputs_dir={outputs}"], env=env)


def run_here(
    arguments: Sequence[str], *, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """What ``qsweep`` with these arguments does and says, without a new interpreter.

    Its jobs are processes of their own as ever, forked from one server for all sweeps of a test
    process: what takes seconds is to import torch and transformers, in every new one.

    Args:
        arguments: What is typed behind ``qsweep``.
        cwd: The working directory.
        env: Variables over those of this process.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, env or {}),
        mock.patch.object(sys, "argv", ["qsweep", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warm_jobs(),
    ):
        try:
            code = main(list(arguments))
        except SystemExit as end:  # argparse's
            code = end.code
    return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def warm_jobs() -> Iterator[None]:
    """Local launchers that begin in here take one fork server, which outlives them."""
    with (
        mock.patch("qsweep.launch.local.ForkServer", _server),
        mock.patch.object(LocalLauncher, "close", lambda self: None),
    ):
        yield


@cache
def _server() -> ForkServer:
    return ForkServer()


def rows(outputs, sweep="t"):
    with (outputs / "sweeps" / sweep / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
