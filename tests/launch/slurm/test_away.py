"""Slurm that does not answer, or takes no workers: told, waited for, and nothing is cancelled.

The commands are scripts, which say what Slurm's own say then.
"""

import os
from pathlib import Path

import pytest

from helpers.machine import wait_until
from helpers.queues import Field, field
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.files import write_json
from qsweep.launch.protocol import Detached
from qsweep.launch.queue.orders import Orders
from qsweep.launch.slurm import SlurmLauncher, launcher

pytest.importorskip("submitit")

AWAY = "echo 'sbatch: error: Batch job submission failed: Unable to contact slurm controller' >&2; exit 1"
REFUSED = "echo 'sbatch: error: invalid partition specified: none' >&2; exit 1"
RUNS = "echo '7_0|RUNNING|n1|None'"
GONE = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Write a script of one of Slurm's commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(launcher, "_LOOK_EVERY_S", 0.0)

    def write(name: str, text: str) -> None:
        new = folder / f"{name}.new"
        new.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.calls\n{text}\n')
        new.chmod(0o755)
        new.rename(folder / name)

    for name in ("srun", "scancel", "squeue"):
        write(name, "")
    write("sbatch", "echo Submitted batch job 9")
    return write


@pytest.fixture
def here(tmp_path, slurm):
    with field(tmp_path) as opened:
        opened.launcher = SlurmLauncher(sweep=opened.sweep, outputs_dir=tmp_path, lease_s=2.0)
        yield opened


def submitted_before(here: Field) -> None:
    here.launcher.folder.mkdir(parents=True)
    write_json(here.launcher.folder / "slurm.json", {"jobs": ["7"]})


def calls(here: Field, name: str) -> str:
    file: Path = here.folder / f"{name}.calls"
    return file.read_text() if file.exists() else ""


def test_a_controller_that_does_not_answer_is_waited_for(here: Field, slurm, capsys):
    slurm("sbatch", AWAY)
    running = here.run(here.job("a"))
    assert wait_until(lambda: calls(here, "sbatch").count("\n") >= 2, 20)
    said = capsys.readouterr().err
    assert said.count("Unable to contact slurm controller; waiting for Slurm") == 1
    slurm("sbatch", "echo Submitted batch job 9")
    slurm("squeue", "echo '9_0|RUNNING|n1|None'")
    assert wait_until(lambda: "1 worker submitted, Slurm job 9" in capsys.readouterr().err, 20)
    here.worker()
    assert running.result(30)["a"].status == "finished"


def test_who_leaves_jobs_to_workers_waits_until_slurm_has_taken_these(here: Field, slurm, capsys):
    slurm("sbatch", AWAY)
    here.launcher.detach = True
    running = here.run(here.job("a"))
    assert wait_until(lambda: calls(here, "sbatch").count("\n") >= 2, 20)
    assert not running.done()
    slurm("sbatch", "echo Submitted batch job 9")
    assert isinstance(running.exception(20), Detached)
    assert "1 worker submitted, Slurm job 9" in capsys.readouterr().err


def test_living_workers_that_cannot_be_seen_are_waited_for(here: Field, slurm, capsys):
    submitted_before(here)
    slurm("squeue", GONE)
    running = here.run(here.job("a"))
    assert wait_until(lambda: calls(here, "squeue").count("\n") >= 2, 20)
    slurm("squeue", RUNS)
    here.worker()
    assert running.result(30)["a"].status == "finished"
    assert not calls(here, "sbatch")
    assert "waiting for Slurm" in capsys.readouterr().err


def test_living_workers_go_on_where_further_ones_are_refused(here: Field, slurm, capsys):
    submitted_before(here)
    here.launcher.workers = 2
    slurm("squeue", RUNS)
    slurm("sbatch", REFUSED)
    running = here.run(here.job("a"), here.job("b"))
    here.worker()
    assert {result.status for result in running.result(30).values()} == {"finished"}
    assert "none; going on with 1 of 2 workers" in capsys.readouterr().err


@pytest.mark.parametrize(("before", "kind"), [(False, ConfigError), (True, QsweepError)])
def test_workers_that_are_refused_leave_jobs_and_all_else_as_it_is(
    here: Field, slurm, capsys, before, kind
):
    if before:
        submitted_before(here)
    slurm("sbatch", REFUSED)
    error = here.run(here.job("a")).exception(20)
    assert type(error) is kind and "invalid partition specified: none" in str(error)
    assert (
        "what is not done is left to workers; the same command collects the results"
        in capsys.readouterr().err
    )
    database = here.launcher._database
    assert Orders(database, here.sweep, "x:1:x").open_jobs() == 1
    here.launcher.close()
    assert not calls(here, "scancel")
