"""What a tracker holds is asked for: lost and damaged notes, copies, kills, hand-made changes."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from helpers.machine import forked
from helpers.trackers import Outputs, client_of, empty_database, outputs, record
from qsweep.base.databases import sqlite_url
from qsweep.base.files import write_json
from qsweep.commands import sync
from qsweep.tracking import sweep_uid
from qsweep.tracking.mlflow.client import Client
from qsweep.tracking.mlflow.journal import current_target, is_settled
from qsweep.tracking.mlflow.sweeplog import sync_sweep

__all__ = ["empty_database", "outputs"]  # fixtures

TWO = (record("k1"), record("k2", bits=3))


def tracked(*records: dict) -> list[dict]:
    """Records as a sweep writes them: with where they are logged."""
    tracking = {"enabled": True, "uri": None, "experiment": "qsweep"}
    return [{**r, "config": {**r["config"], "tracking": tracking}} for r in records]


def log_of(outputs: Outputs, **parts) -> dict:
    """A journal whose log of this place has other parts than it should."""
    return {"uid": "u1", "logs": {outputs.place.label: parts}}


DAMAGES = {
    "gone": None,
    "a list": "[]",
    "empty": "",
    "half": '{"version": 1, "uid": "a',
    "no text": b"\xff\xfe\x00",
    "a number": "5",
    "an empty mapping": "{}",
    "a number for an identity": '{"uid": 5, "logs": {}}',
    "a quote in the identity": '{"uid": "x\' or 1=1", "logs": {}}',
    "logs that are a list": '{"uid": "u", "logs": []}',
    "a place that is a text": '{"uid": "u", "logs": {}, "current": "here", "complete": "yes"}',
    "a place with numbers": '{"uid": "u", "logs": {}, "current": {"uri": 1, "experiment": 2}}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_lost_or_damaged_journal_doubles_nothing(outputs: Outputs, damage: str):
    outputs.run(*TWO)
    before = {run.info.run_id for run in outputs.runs()}
    file = outputs.directory / "tracking.json"
    content = DAMAGES[damage]
    file.unlink()
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert outputs.run(*TWO) == []
    assert {run.info.run_id for run in outputs.runs()} == before
    # rebuilt: it knows both trials again, and nothing was logged a second time
    marks = next(iter(json.loads(file.read_text())["logs"].values()))
    assert marks["runs"].keys() == {"k1", "k2"} and marks["summary"]
    client = client_of(outputs.place.uri)
    run_id = outputs.children()["k1"].info.run_id
    assert len(client.get_metric_history(run_id, "ppl")) == 1
    outputs.run(*TWO, record("k3", bits=8))
    assert len(outputs.runs()) == 4


@pytest.mark.parametrize(
    "parts",
    [
        {"runs": [], "parent": "p"},
        {"runs": {"k1": "text"}, "parent": "p"},
        {"runs": {"k1": {"run_id": 5, "record_sha256": "x"}}, "parent": "p"},
        {"runs": {"k1": {"run_id": "r"}}, "parent": "p"},
        {"runs": {}, "parent": 5},
        {"runs": {}, "parent": "p", "summary": 5, "page": []},
        {"parent": "p"},
    ],
)
def test_marks_of_a_wrong_kind_are_asked_for(outputs: Outputs, parts: dict):
    outputs.run(*TWO)
    write_json(outputs.directory / "tracking.json", log_of(outputs, **parts))
    assert outputs.run(*TWO) == []
    assert len(outputs.runs()) == 3


def test_sync_doubles_nothing_either(outputs: Outputs, capsys):
    outputs.run(*tracked(*TWO))
    assert outputs.parent().info.status == "FINISHED"
    (outputs.directory / "tracking.json").unlink()
    for _ in range(2):
        assert sync.main(["--outputs", str(outputs.root)]) == 0
        assert capsys.readouterr().out == "nothing to do: everything is logged\n"
        assert len(outputs.runs()) == 3
        assert outputs.parent().info.status == "FINISHED"


def test_sync_finds_the_tracker_in_the_records(outputs: Outputs, capsys, monkeypatch):
    there = outputs.root / "elsewhere.db"
    shutil.copy(outputs.root / "mlflow.db", there)
    monkeypatch.setenv("TRACKER", sqlite_url(there))
    away = Outputs(outputs.root, sqlite_url(there), experiment="mine")
    tracking = {"enabled": True, "uri": "${oc.env:TRACKER}", "experiment": "mine"}
    away.write({**TWO[0], "config": {"tracking": tracking}})
    assert sync.main(["--outputs", str(outputs.root)]) == 0
    assert len(away.runs()) == 2 and outputs.runs() == []
    monkeypatch.delenv("TRACKER")
    (away.directory / "tracking.json").unlink()
    assert sync.main(["--outputs", str(outputs.root)]) == 0  # nothing says where: not tracked
    assert outputs.runs() == []


def test_a_sweep_killed_before_anything_was_whole(outputs: Outputs):
    """The parent exists and a trial's run is half-logged; then the notes get lost."""
    outputs.write(*TWO)
    write_json(
        outputs.directory / "sweep.json",
        {"name": "demo", "command": "c", "started": "x", "uid": sweep_uid(outputs.directory)},
    )

    def log():
        Client.seal = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        sync_sweep(outputs.directory, outputs.place, outputs.root)

    (process := forked(log)).join(120)
    assert process.exitcode == -9 and len(outputs.runs()) == 2
    (outputs.directory / "tracking.json").unlink()
    assert sync_sweep(outputs.directory, outputs.place, outputs.root) == 2
    assert len(outputs.runs()) == 3


def test_a_sweep_that_was_moved_and_lost_its_notes_is_known_by_its_records(outputs: Outputs):
    outputs.run(*TWO)
    moved = Outputs(outputs.root / "moved", outputs.place.uri)
    moved.directory.parent.mkdir(parents=True)
    outputs.directory.rename(moved.directory)
    (moved.directory / "tracking.json").unlink()
    # an older version put no seal on its runs
    client = client_of(outputs.place.uri)
    for run in outputs.children().values():
        client.delete_tag(run.info.run_id, "qsweep.record")
    assert moved.run(*TWO) == []
    assert len(outputs.runs()) == 3


def test_somebody_elses_sweep_of_the_same_name_is_left_alone(outputs: Outputs):
    outputs.run(record("k1", quantize_s=11.0))
    other = Outputs(outputs.root / "other", outputs.place.uri)
    assert other.run(record("k1", quantize_s=12.5)) == []
    assert len(outputs.runs()) == 4
    assert {run.data.metrics["quantize_s"] for run in runs_with_key(outputs)} == {11.0, 12.5}


def runs_with_key(outputs: Outputs) -> list:
    return [run for run in outputs.runs() if "qsweep.key" in run.data.tags]


def test_a_copy_under_another_name_is_a_sweep_of_its_own(outputs: Outputs):
    outputs.run(*TWO)
    copy = Outputs(outputs.root, None, name="copy")
    shutil.copytree(outputs.directory, copy.directory)
    # as long as nobody goes on with it, it may be a backup
    assert is_settled(copy.directory, copy.place)
    assert sync.main(["--outputs", str(outputs.root)]) == 0
    assert len(outputs.runs()) == 3
    more = [{**r, "sweep": "copy"} for r in (*TWO, record("k3", bits=8))]
    assert copy.run(*more) == []
    parents = {r.data.tags["sweep"]: r for r in outputs.runs() if "qsweep.sweep" in r.data.tags}
    assert parents.keys() == {"demo", "copy"}
    assert parents["demo"].data.metrics["trials_finished"] == 2
    assert len(outputs.runs()) == 3 + 4
    for _ in range(2):
        copy.run(*more)
        outputs.run(*TWO)
    assert len(outputs.runs()) == 7


@pytest.mark.parametrize("name", ["it's", 'it\'s "quoted"', "a b", "ünï"])
def test_a_sweep_of_any_name_is_found_again(outputs: Outputs, name: str):
    odd = Outputs(outputs.root, None, name=name)
    records = [{**r, "sweep": name} for r in TWO]
    assert odd.run(*records) == []
    (odd.directory / "tracking.json").unlink()
    assert odd.run(*records) == []
    assert len(outputs.runs()) == 3


def test_a_renamed_sweep_stays_the_same(outputs: Outputs):
    outputs.run(*TWO)
    renamed = Outputs(outputs.root, None, name="renamed")
    outputs.directory.rename(renamed.directory)
    renamed.run(*TWO, record("k3", bits=8))
    assert len(outputs.runs()) == 4


@pytest.mark.parametrize("lost", [False, True])
def test_trials_outlive_their_parent_deleted_by_hand(outputs: Outputs, lost: bool):
    outputs.run(*TWO)
    client_of(outputs.place.uri).delete_run(outputs.parent().info.run_id)
    if lost:
        (outputs.directory / "tracking.json").unlink()
    outputs.run(*TWO, record("k3", bits=8))
    assert len(outputs.runs()) == 4
    parent = outputs.parent().info.run_id
    assert {r.data.tags["mlflow.parentRunId"] for r in outputs.children().values()} == {parent}


def test_two_sweeps_at_once_make_one_experiment(tmp_path: Path, empty_database: Path):
    shutil.copy(empty_database, tmp_path / "shared.db")
    uri = sqlite_url(tmp_path / "shared.db")
    both = [Outputs(tmp_path / name, uri) for name in ("a", "b")]
    begin = multiprocessing.get_context("fork").Barrier(2)

    def log(each):
        begin.wait(60)
        assert sync_sweep(each.directory, each.place, each.root) == 1

    for number, each in enumerate(both):
        each.write(record("k1", quantize_s=float(number)))
    processes = [forked(log, each) for each in both]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(both[0].runs()) == 4


def test_identities_of_a_folder(tmp_path: Path):
    folder = tmp_path / "sweeps" / "a"
    assert sweep_uid(folder) != sweep_uid(folder)
    write_json(folder / "sweep.json", {"name": "a", "uid": "u1"})
    assert sweep_uid(folder) == "u1"
    write_json(folder / "tracking.json", {"name": "a", "uid": "u2", "logs": {}})
    assert sweep_uid(folder) == "u2"
    assert current_target(folder) is None
