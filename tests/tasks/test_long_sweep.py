"""A sweep with long answers: what lies in its folder, and that a second run generates nothing."""

import csv
import json

import pytest

from helpers.sweeps import run_here

ARGUMENTS = [
    "quant=rtn", "bits=2", "eval=long", "eval.limit=3", "eval.samples=2", "eval.steps=2",
    "eval.num_fewshot=1", "eval.max_windows=1", "eval.noise_floor=false", "corpus=[python_docs]",
    "tracking=none", "sweep=t",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    result = run_here([*ARGUMENTS, f"outputs_dir={outputs}"])
    assert result.returncode == 0, result.stdout + result.stderr
    return outputs, result


def records(outputs):
    files = (outputs / "sweeps" / "t" / "trials").glob("*.json")
    return {record["method"]: record for record in map(json.loads, (f.read_text() for f in files))}


def test_two_bits_part_early_and_the_reference_never(finished):
    found = records(finished[0])
    assert [task["name"] for task in found["rtn"]["tasks"]] == ["long_totals", "long_lists"]
    assert found["rtn"]["long"]["departed"] > 0.5 and found["rtn"]["long"]["divergence_token"] <= 5
    assert found["none"]["long"]["departed"] == 0 and found["none"]["long"]["length_ratio"] == 1.0
    # What the embedded model cannot do is told as such, and its lengths are compared all the same.
    assert found["rtn"]["capabilities"]["long answers"]["measurable"] is False
    assert found["rtn"]["long"]["samples"] == 12


def test_tables_and_pages_tell_of_it(finished):
    folder = finished[0] / "sweeps" / "t"
    with (folder / "results.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["method"] == "rtn")
    long = records(finished[0])["rtn"]["long"]
    assert float(row["long_length_ratio"]) == pytest.approx(long["length_ratio"])
    assert float(row["divergence_token"]) == long["divergence_token"]
    assert "## Long answers" in (folder / "capabilities.md").read_text()
    assert "still the reference" in (folder / "report.html").read_text()


def test_the_same_command_generates_nothing_again(finished):
    outputs, _ = finished
    folder = outputs / "store" / "tasks"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 4
    again = run_here([*ARGUMENTS, f"outputs_dir={outputs}"])
    assert again.returncode == 0, again.stderr
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_no_samples_are_refused_before_anything_runs(tmp_path):
    result = run_here([*ARGUMENTS, "eval.samples=0", f"outputs_dir={tmp_path}"])
    assert result.returncode == 2 and "eval.samples=0: must be at least 1" in result.stderr
    assert not (tmp_path / "sweeps").exists()
