"""A package of other people, installed for real: its quantizer, text, task, launcher and tracker."""

import json
import os
import subprocess
import sys

import pytest

from helpers.packages import THEIR_ENTRY_POINTS, THEIRS, install
from helpers.sweeps import ROOT, rows

BRIEF = ["eval=brief", "device=cpu", "sweep=t"]
SWAPPED = ["~launch.note", "+launch.file=x"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return install(tmp_path_factory.mktemp("site"), "theirs", THEIRS, THEIR_ENTRY_POINTS)


@pytest.fixture(scope="module")
def call(site):
    def command(*arguments):
        environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        line = [sys.executable, "-m", "qsweep", *arguments]
        return subprocess.run(
            line, capture_output=True, text=True, cwd=ROOT, timeout=240, env=environment
        )

    return command


def test_a_sweep_with_their_quantizer_text_task_launcher_and_tracker(call, tmp_path):
    done = call(
        *("-m", "quant=truncated", "bits=3,8", "corpus=proverbs", "eval.tasks=[endings]"),
        *("launch=inline", "launch.note=theirs:", "tracking=lines"),
        *(*BRIEF, f"outputs_dir={tmp_path}"),
    )
    assert done.returncode == 0, done.stderr
    found = {(row["method"], row["bits"]): row for row in rows(tmp_path)}
    assert found["truncated", "8"]["status"] == "skipped"
    made = found["truncated", "3"]
    assert made["backend"] == "theirs" and made["corpus"] == "proverbs"
    assert float(made["kld"]) > 0
    files = list((tmp_path / "sweeps" / "t" / "trials").glob("*.json"))
    tasks = [task for file in files for task in json.loads(file.read_text()).get("tasks") or ()]
    assert {task["name"] for task in tasks} == {"endings"} and len(tasks) == 2
    assert "theirs: pocket truncated 3-bit finished" in done.stderr
    lines = (tmp_path / "lines.jsonl").read_text().splitlines()
    assert len(lines) == 4 and json.loads(lines[-1]) == {"records": 3}
    assert f"lines in {tmp_path / 'lines.jsonl'}" in done.stdout


@pytest.mark.slow
def test_their_text_calibrates_and_by_target_nothing_need_be_declared(call, tmp_path):
    done = call(
        *("quant=gptq", "calibration=proverbs", "calibration.num_samples=2"),
        *("calibration.max_seq_len=32", "corpus=proverbs", "eval.tasks=[theirs.tasks:Endings]"),
        *("eval.divergence=false", "tracking=none", *BRIEF, f"outputs_dir={tmp_path}"),
    )
    assert done.returncode == 0, done.stderr
    assert {row["calibration"] for row in rows(tmp_path) if row["method"] == "gptq"} == {"proverbs"}


def test_what_they_offer_is_among_the_choices_and_their_options_are_checked(call, tmp_path):
    shown = call("quant=truncated", "--cfg", "job").stdout
    assert "_target_: theirs.quantizers.Truncated" in shown and "keep_first: false" in shown
    shown = call("--help").stdout
    assert "truncated" in shown and "proverbs" in shown
    place = f"outputs_dir={tmp_path / 'out'}"
    for arguments, message in (
        (["quant=truncatd"], "quant=truncatd: no such choice; did you mean 'truncated'?"),
        (["quant=truncated", "quant.keep_last=true"], "quant.keep_last"),
        (["quant=truncated", "quant.keep_first=2"], "quant.keep_first=2"),
        (["quant=none", "quant._target_=theirs.track.Lines"], "is no Quantizer, it has no method"),
        (["eval.tasks=[theirs.tasks:Beginnings]"], "theirs.tasks:Beginnings: cannot be imported"),
        (["corpus=proverbs", "corpus.proverbs.source=nowhere"], "source=nowhere: no such source"),
        (["launch=inline", "launch._target_=theirs.track.Lines", *SWAPPED], "is no Launcher"),
    ):
        done = call(*arguments, place)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "out" / "sweeps").exists()


def test_an_entry_point_that_cannot_be_imported_names_its_package(tmp_path):
    points = "[qsweep.quantizers]\nbroken = broken.nowhere:Class\n"
    site = install(tmp_path, "broken", {"__init__.py": ""}, points)
    environment = os.environ | {"PYTHONPATH": str(site)}
    line = [sys.executable, "-m", "qsweep", "quant=broken", f"outputs_dir={tmp_path / 'out'}"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "'broken.nowhere:Class' of the package broken cannot be imported" in done.stderr
