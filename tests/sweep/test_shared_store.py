"""Machines that share nothing but a remote copy of the store: what one has done no other does again."""

import csv
import json
from pathlib import Path

import pytest

from helpers.sweeps import qsweep
from qsweep.base.store import ROOT_VARIABLE, Store
from qsweep.launch import JobResult

SMALLER = ["corpus=python_docs", "eval.max_windows=2"]
SWEEP = ["-m", "quant=rtn,gptq", "bits=4", *SMALLER]


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.cluster)])
def url(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("s3_bucket")
    (folder := tmp_path / "mounted").mkdir()
    return f"file://{folder}"


def table(outputs):
    with (outputs / "sweeps/t/results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def records(outputs):
    found = {}
    for file in sorted((outputs / "sweeps/t/trials").glob("*.json")):
        found[file.stem] = json.loads(file.read_text())
    return found


@pytest.mark.slow
def test_a_second_machine_makes_nothing_anew(url, tmp_path, monkeypatch, capfd):
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    first, second = tmp_path / "a", tmp_path / "b"
    done = qsweep(first, *SWEEP, f"store.remote={url}")
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr("qsweep.sweep.run.run_queue", lambda *_, **__: pytest.fail("a job runs"))
    again = qsweep(second, *SWEEP, f"store.remote={url}")
    assert again.returncode == 0, again.stderr
    mine, theirs = records(first), records(second)
    assert mine.keys() == theirs.keys() and len(mine) == 4
    for key, record in mine.items():
        other = theirs[key]
        assert other["status"] == "finished" and other["cached"]
        for one, same in zip(record["measurements"], other["measurements"], strict=True):
            assert (one["metrics"], one["facts"]) == (same["metrics"], same["facts"])
            assert Path(one["file"]).is_dir() and Path(same["file"]).is_dir()
        for name in ("quantize_s", "evaluate_s", "model_hash", "options"):
            assert record.get(name) == other.get(name), name
        if "tensors" in record:
            assert record["tensors"] | {"file": ""} == other["tensors"] | {"file": ""}
    rows, other_rows = table(first), table(second)
    assert len(rows) == 4 and len(rows) == len(other_rows)
    for row, other in zip(rows, other_rows, strict=True):
        differ = {name for name in row if row[name] != other[name]}
        assert differ <= {"cached", "artifact", "log", "seconds", "started", "ended"}, differ
    assert (second / "sweeps/t/report.html").stat().st_size > 0.9 * (
        first / "sweeps/t/report.html"
    ).stat().st_size
    # Measurements came along; what is large and was only looked at stayed away.
    assert len(list((second / "store/measurements").glob("[!.]*"))) == 4
    assert not (second / "store/artifacts").exists() or not list(
        (second / "store/artifacts").glob("[!.]*")
    )
    assert not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.slow
def test_a_second_machine_makes_only_what_is_new(url, tmp_path, monkeypatch):
    """Of another configuration the reference and what was measured of it come from the remote."""
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    first, second = tmp_path / "a", tmp_path / "b"
    assert qsweep(first, "quant=rtn", "bits=4", *SMALLER, f"store.remote={url}").returncode == 0
    held = {p.name for p in (first / "store/references").glob("[!.]*")}
    done = qsweep(second, "quant=rtn", "bits=3", *SMALLER, f"store.remote={url}")
    assert done.returncode == 0, done.stderr
    mine, theirs = records(first), records(second)
    (reference,) = mine.keys() & theirs.keys()
    assert (
        mine[reference]["measurements"][0]["metrics"]
        == theirs[reference]["measurements"][0]["metrics"]
    )
    assert theirs[reference]["cached"]
    assert {p.name for p in (second / "store/references").glob("[!.]*")} == held
    # And back: the first finds what the second has made.
    back = qsweep(first, "quant=rtn", "bits=3", *SMALLER, f"store.remote={url}")
    assert back.returncode == 0 and all(
        r["cached"] for r in records(first).values() if r["options"].get("bits") == 3
    )


def test_jobs_of_a_node_with_a_store_of_its_own(url, tmp_path, monkeypatch):
    """What a job makes elsewhere is found by whoever gave it the job, through the remote."""
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    outputs, node = tmp_path / "out", tmp_path / "node" / "store"
    real = Store.at.__func__

    monkeypatch.setattr(
        Store, "at", classmethod(lambda cls, address: real(cls, address | {"root": str(node)}))
    )
    from qsweep.sweep import trial

    def run_here(plans, names, target, sweep, store, launcher, *, on_done, waits_for):
        from qsweep.sweep.jobs import plan_job

        for plan in plans.values():
            job = plan_job(plan, "x", target, (), store, sweep.log_of(plan.key), None)
            trial.run(json.loads(json.dumps(job.payload)), lambda *_: None)
            on_done(job, JobResult("finished"))

    monkeypatch.setattr("qsweep.sweep.run.run_queue", run_here)
    done = qsweep(outputs, "quant=rtn", "bits=4", *SMALLER, f"store.remote={url}")
    assert done.returncode == 0, done.stderr
    assert all(r["status"] == "finished" for r in records(outputs).values())
    assert len(list((node / "artifacts").glob("[!.]*"))) == 1
    assert not (outputs / "store/artifacts").exists()


def test_a_remote_that_cannot_be_used_is_noticed_before_anything_runs(tmp_path):
    done = qsweep(tmp_path / "out", "quant=rtn", f"store.remote=file://{tmp_path}/nowhere")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: store.remote=file://")
    assert not (tmp_path / "out/sweeps").exists()
