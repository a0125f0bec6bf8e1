"""Databases under any path, by one driver, and what is said where one cannot be used."""

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
from sqlalchemy import exc

from helpers.machine import free_port
from helpers.trackers import Outputs, client_of, empty_database, record, runs_in, wait_until
from qsweep.base.databases import (
    DatabaseError,
    check_sqlite,
    driver_message,
    is_refusal,
    sqlite_path,
    sqlite_url,
    with_driver,
)
from qsweep.base.errors import ConfigError
from qsweep.commands import sync, ui
from qsweep.search.storage import open_storage
from qsweep.tracking import TrackingConfig, ui_line
from qsweep.tracking.mlflow.journal import TrackingTarget
from qsweep.tracking.settings import resolved_uri

__all__ = ["empty_database"]  # a fixture

TWO = (record("k1"), record("k2", bits=3))


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
    assert "the sweep goes on" in said[0] and "qsweep sync" in said[1]
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
    assert 'pip install "psycopg[binary]"' in said[-1] and "s3cret" not in " ".join(said)
    assert driver_message(ValueError("x (Background on this)")) == "x"


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"C": "28P01", "M": "password authentication failed"}, True),
        ({"C": "22021", "M": "invalid byte sequence"}, True),
        ({"C": "42501", "M": "permission denied"}, True),
        ({"C": "57P01", "M": "terminating connection"}, False),
        ({"C": "40001", "M": "could not serialize access"}, False),
        ({"C": "53300", "M": "too many connections"}, False),
        ("server requesting password authentication, but no password was provided", True),
        ("network error", False),
    ],
)
def test_what_a_server_refuses_is_told_from_one_that_is_away(fields, refused: bool):
    cause = RuntimeError(fields)  # its arguments are as pg8000 gives them
    assert is_refusal(exc.DatabaseError("SELECT 1", {}, cause)) is refused
    assert is_refusal(cause) is refused


def test_what_sqlite_refuses_is_told_from_a_file_that_is_locked():
    locked = sqlite3.OperationalError("database is locked")
    assert not is_refusal(exc.OperationalError("SELECT 1", {}, locked))
    assert is_refusal(exc.DataError("SELECT 1", {}, sqlite3.DataError("too big")))


def test_a_database_server_that_is_away_is_said_at_once(tmp_path: Path):
    away = Outputs(tmp_path, f"postgresql://me:s3cret@127.0.0.1:{free_port()}/d")
    began = time.monotonic()
    said = away.run(record("k1"))
    assert time.monotonic() - began < 15
    assert 1 <= len(said) <= 2 and "connection refused" in said[-1]


def test_postgresql_is_a_tracker_and_a_storage(tmp_path: Path, postgresql: str):
    from sqlalchemy import create_engine, text

    with create_engine(postgresql, isolation_level="AUTOCOMMIT").connect() as connection:
        for name in ("tracker", "studies"):
            connection.execute(text(f"CREATE DATABASE {name}"))
    tracker = postgresql.removesuffix("postgres") + "tracker"
    plain = tracker.replace("+pg8000", "")
    pg, there = Outputs(tmp_path, plain), TrackingTarget(tracker, "qsweep")
    assert pg.run(*TWO, timeout_s=200) == []
    assert len(runs_in(there)) == 3
    (pg.directory / "tracking.json").unlink()
    assert pg.run(*TWO, record("k3", bits=8), timeout_s=200) == []
    assert len(runs_in(there)) == 4
    got = client_of(tracker).download_artifacts(runs_in(there)[0].info.run_id, "", str(tmp_path))
    assert Path(got).is_dir()
    # Optuna keeps the version of its tables where MLflow does
    with pytest.raises(ConfigError, match="another program's database"):
        open_storage(plain, tmp_path)
    own = plain.removesuffix("tracker") + "studies"
    assert open_storage(own, tmp_path).get_all_studies() == []
    assert open_storage(own.replace("postgresql", "postgres"), tmp_path).get_all_studies() == []
    refused = Outputs(tmp_path / "other", own).run(record())
    assert "another program's database" in refused[-1]
