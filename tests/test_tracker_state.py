"""What a tracker holds is asked for: lost and damaged notes, copies, odd places, databases."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest

from qsweep import sync, ui
from qsweep.databases import (
    DatabaseError,
    check_sqlite,
    sqlite_path,
    sqlite_url,
    with_driver,
    words_of,
)
from qsweep.errors import ConfigError
from qsweep.files import write_json
from qsweep.search.storage import open_storage
from qsweep.tracking import TrackingConfig, sweep_uid, ui_line
from qsweep.tracking.journal import current_place, is_settled
from qsweep.tracking.settings import resolved_uri
from qsweep.tracking.sweeplog import sync_sweep
from test_tracking import Outputs, client_of, empty_database, outputs, record, wait_until
from test_ui import free_port

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
    code = f"""
import os, signal
from pathlib import Path
from qsweep.tracking.client import Client
from qsweep.tracking.journal import Place
from qsweep.tracking.sweeplog import sync_sweep
Client.seal = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
root = Path({str(outputs.root)!r})
sync_sweep(root / "sweeps" / "demo", Place({outputs.place.uri!r}, "qsweep"), root)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=120, check=False)
    assert done.returncode == -9 and len(outputs.runs()) == 2
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
    assert not is_settled(copy.directory, copy.place)
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
    code = (
        "import sys; from pathlib import Path; from qsweep.tracking.journal import Place; "
        "from qsweep.tracking.sweeplog import sync_sweep; d = Path(sys.argv[1]); "
        "print(sync_sweep(d, Place(sys.argv[2], 'qsweep'), d.parents[1]))"
    )
    processes = []
    for number, each in enumerate(both):
        each.write(record("k1", quantize_s=float(number)))
        arguments = [sys.executable, "-c", code, str(each.directory), uri]
        processes.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True))
    assert [p.communicate(timeout=120)[0] for p in processes] == ["1\n", "1\n"]
    assert len(both[0].runs()) == 4


# databases


def test_identities_of_a_folder(tmp_path: Path):
    folder = tmp_path / "sweeps" / "a"
    assert sweep_uid(folder) != sweep_uid(folder)
    write_json(folder / "sweep.json", {"name": "a", "uid": "u1"})
    assert sweep_uid(folder) == "u1"
    write_json(folder / "tracking.json", {"name": "a", "uid": "u2", "logs": {}})
    assert sweep_uid(folder) == "u2"
    assert current_place(folder) is None


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://h/x"])
def test_a_sqlite_url_without_a_file_is_refused_before_anything_runs(uri: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="sqlite:///FILE"):
        TrackingConfig(uri=uri)
    with pytest.raises(ConfigError, match="sqlite:///FILE"):
        open_storage(uri, tmp_path)


def make_unusable(path: Path, kind: str) -> str:
    """Put something there that is no tracker's database; returns a word of what is said."""
    if kind == "directory":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello, I am no database, " * 100)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "damaged":
        path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    elif kind == "another":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE recipes (name TEXT)")
    elif kind == "below a file":
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    return {
        "directory": "is a directory", "text": "is no sqlite database",
        "pipe": "is not a regular file", "damaged": "is damaged",
        "another": "another program's database", "below a file": "cannot be",
    }[kind]  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["directory", "text", "pipe", "damaged", "another", "below a file"]
)
def test_a_database_that_cannot_be_opened_is_said_at_once(tmp_path: Path, kind: str, capsys):
    path = tmp_path / "there"
    words = make_unusable(path, kind)
    if kind == "below a file":
        path = path / "x.db"
    uri = sqlite_url(path)
    away = Outputs(tmp_path / "o", uri)
    began = time.monotonic()
    said = away.run(record("k1"))
    assert time.monotonic() - began < 8
    assert len(said) == 2 and all(words in line and "slow" not in line for line in said)
    assert "the sweep goes on" in said[0] and "qsweep.sync" in said[1]
    assert sync.main(["--outputs", str(tmp_path / "o")]) == 1
    assert words in capsys.readouterr().err
    assert ui.main(["--tracking", uri, "--no-browser"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(ConfigError, match=words):
        open_storage(uri, tmp_path)
    assert time.monotonic() - began < 12


@pytest.mark.skipif(os.getuid() == 0, reason="root may read and write everything")
def test_a_database_without_permission(tmp_path: Path):
    path = tmp_path / "x.db"
    path.touch(mode=0o400)
    with pytest.raises(DatabaseError, match="may not be read and written"):
        check_sqlite(path)


ODD = [
    "a b",
    "a#b",
    "a?b=c&d",
    "a%20b",
    "a%b",
    "a%2Fb",
    "ünï日本",
    "a=b",
    "it's",
    'a"b',
    "[a](1)",
    "a@b:c",
]


@pytest.mark.parametrize("odd", ODD)
def test_any_path_is_a_sqlite_url(tmp_path: Path, odd: str):
    from sqlalchemy import create_engine, text

    path = tmp_path / odd / "x.db"
    path.parent.mkdir()
    assert sqlite_path(sqlite_url(path)) == path
    assert resolved_uri(sqlite_url(path), tmp_path) == sqlite_url(path)
    with create_engine(sqlite_url(path)).begin() as connection:
        connection.execute(text("CREATE TABLE t (x INT)"))
    assert path.is_file() and [p.name for p in tmp_path.iterdir()] == [odd]
    storage = open_storage(None, path.parent)
    assert storage.get_all_studies() == [] and (path.parent / "study.db").is_file()
    assert [p.name for p in tmp_path.iterdir()] == [odd]


@pytest.mark.parametrize("odd", ["a b#c?d=e", "100%", "a%20b?x", "ünï=[1]"])
def test_a_sweep_is_logged_wherever_its_outputs_are(
    tmp_path: Path, odd: str, empty_database: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / odd
    root.mkdir()
    shutil.copy(empty_database, root / "mlflow.db")
    there = Outputs(root, None)
    assert there.run(*TWO) == []
    assert len(there.runs()) == 3
    run_id = there.children()["k1"].info.run_id
    client = client_of(there.place.uri)
    assert "record.json" in {item.path for item in client.list_artifacts(run_id)}
    (tmp_path / "got").mkdir()
    got = client.download_artifacts(run_id, "record.json", str(tmp_path / "got"))
    assert json.loads(Path(got).read_text())["key"] == "k1"
    assert {p.name for p in tmp_path.iterdir()} == {odd, "got"}
    assert {p.name for p in root.iterdir()} == {"mlflow.db", "mlruns", "sweeps"}
    assert ui_line(there.config, root)


@pytest.mark.slow
def test_the_ui_serves_artifacts_from_an_odd_place(tmp_path: Path, empty_database: Path):
    root = tmp_path / "a b#c?d%20e"
    root.mkdir()
    shutil.copy(empty_database, root / "mlflow.db")
    there = Outputs(root, None)
    assert there.run(record("k1")) == []
    run_id, port = there.children()["k1"].info.run_id, free_port()
    command = [sys.executable, "-m", "qsweep.ui", "--no-browser", "--outputs", str(root)]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None and b"runs?" in process.stdout.readline()
        address = f"http://127.0.0.1:{port}/get-artifact?path=record.json&run_uuid={quote(run_id)}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert json.loads(answer.read())["key"] == "k1"
    finally:
        process.terminate()
        wait_until(lambda: process.poll() is not None)


def test_postgresql_gets_the_driver_that_is_installed(tmp_path: Path):
    assert with_driver("postgresql://h/d") == "postgresql+pg8000://h/d"
    assert with_driver("postgres://h/d") == "postgresql+pg8000://h/d"
    assert with_driver("postgresql+psycopg://h/d") == "postgresql+psycopg://h/d"
    assert with_driver("mysql://h/d") == "mysql://h/d"
    said = Outputs(tmp_path, "postgresql+psycopg://me:s3cret@127.0.0.1:1/d").run(record())
    assert "pip install psycopg" in said[-1] and "s3cret" not in " ".join(said)
    assert words_of(ValueError("x (Background on this)")) == "x"


def test_a_database_server_that_is_away_is_said_at_once(tmp_path: Path):
    away = Outputs(tmp_path, f"postgresql://me:s3cret@127.0.0.1:{free_port()}/d")
    began = time.monotonic()
    said = away.run(record("k1"))
    assert time.monotonic() - began < 15
    assert 1 <= len(said) <= 2 and "connection refused" in said[-1]


def test_postgresql_is_a_tracker(tmp_path: Path, postgresql: str):
    pg = Outputs(tmp_path, postgresql.replace("+pg8000", ""))
    assert pg.run(*TWO, timeout_s=200) == []
    assert len(pg.runs()) == 3
    (pg.directory / "tracking.json").unlink()
    assert pg.run(*TWO, record("k3", bits=8), timeout_s=200) == []
    assert len(pg.runs()) == 4
    assert open_storage(f"{postgresql.replace('+pg8000', '')}", tmp_path).get_all_studies() == []
