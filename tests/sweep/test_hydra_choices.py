"""Other launchers and sweepers of Hydra: one sweep, or one line that says what to do instead."""

import os
import subprocess
import sys

import pytest

from helpers.sweeps import ROOT, rows, run_here

BRIEF = ["-m", "quant=none,rtn", "eval.max_windows=1", "eval.context=64", "eval.divergence=false"]
BRIEF += ["corpus=python_docs", "tracking=none", "device=cpu", "bits=8"]
OTHER = """
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore

class Cluster(BasicLauncher):
    pass

class Guess(BasicSweeper):
    def __init__(self):
        super().__init__(max_batch_size=1)

for group, cls in (("launcher", Cluster), ("sweeper", Guess)):
    node = {"_target_": f"hydra_plugins.other.{cls.__name__}"}
    ConfigStore.instance().store(group=f"hydra/{group}", name="other", node=node)
"""


def call(outputs, *arguments, path):
    """In a process of its own, which finds plugins there."""
    line = [sys.executable, "-m", "qsweep", *BRIEF, f"outputs_dir={outputs}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run(
        line, capture_output=True, text=True, cwd=ROOT, timeout=240, env=environment
    )


def test_trials_that_hydra_hands_over_one_by_one_are_one_sweep(tmp_path):
    line = [*BRIEF, f"outputs_dir={tmp_path}"]
    done = run_here(line)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "sweeps").iterdir()
    table = (folder / "results.csv").read_text()
    assert [row["method"] for row in rows(tmp_path, folder.name)] == ["rtn", "none"]
    for choice in (
        ["hydra/launcher=basic"],
        ["hydra/launcher=basic", "hydra/sweeper=basic"],
        ["hydra/sweeper=basic", "hydra.sweeper.max_batch_size=1"],
    ):
        again = run_here([*line, *choice])
        assert again.returncode == 0, again.stderr
        # the same sweep, of the same name, from the same trials, which need not run again
        assert list((tmp_path / "sweeps").iterdir()) == [folder]
        assert (folder / "results.csv").read_text() == table
        assert again.stdout == done.stdout and "[1/" not in again.stderr


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (["hydra/launcher=other"], "hydra/launcher=other: would make a sweep of every trial"),
        (
            ["hydra/launcher=other", "hydra/sweeper=basic"],
            "hydra/launcher=other: would make a sweep of every trial",
        ),
        (["hydra/sweeper=other"], "hydra/sweeper=other: would make a sweep of every batch"),
    ],
)
def test_what_would_make_many_sweeps_of_one_is_refused_and_says_what_to_use(
    tmp_path, choice, message
):
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "other.py").write_text(OTHER)
    done = call(tmp_path / "out", *choice, path=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "out" / "sweeps").exists()
