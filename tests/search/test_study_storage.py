"""A study's storage that is damaged, cannot be written, or fails on the way."""

import subprocess
from contextlib import contextmanager

import optuna
import pytest

from qsweep.base.errors import QsweepError
from qsweep.search.storage import open_storage, storage_errors

JOURNALS = {
    "text": b"garbage\n",
    "bytes": b"\xff\xfe\x00\n",
    "bytes without an end": b"\xff\xfe\x00",
    "list": b"[]\n",
    "mapping": b"{}\n",
    "null": b"null\n",
    "another operation": b'{"op_code": 99}\n',
    "operation as text": b'{"op_code": "0", "worker_id": "w"}\n',
    "wrong fields": b'{"op_code": 0, "study_name": 3, "directions": ["x"], "worker_id": "w"}\n',
    "deep": b"[" * 50_000 + b"\n",
}
DATABASES = {"text": b"garbage" * 100, "header": b"SQLite format 3\0" + b"x" * 4000}


def use(where, folder):
    """Open a study as a search does, and add a trial; returns how many it has."""
    storage = open_storage(where, folder)
    study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    return len(study.trials)


@pytest.mark.parametrize("where", [None, "journal"])
def test_a_folder_may_have_any_name(where, tmp_path):
    folder = tmp_path / "a (1), {x} %7B#?"
    folder.mkdir()
    assert [use(where, folder) for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("content", JOURNALS.values(), ids=JOURNALS)
def test_a_damaged_journal_of_the_sweep_is_put_aside(content, tmp_path, capsys):
    (tmp_path / "study.journal").write_bytes(content)
    assert use("journal", tmp_path) == 1
    assert "no study that can be read" in capsys.readouterr().err
    assert (tmp_path / "study.journal.damaged").read_bytes() == content
    assert use("journal", tmp_path) == 2


@pytest.mark.parametrize("content", JOURNALS.values(), ids=JOURNALS)
def test_a_file_that_the_user_named_is_never_touched(content, tmp_path):
    file = tmp_path / "mine.journal"
    file.write_bytes(content)
    with pytest.raises(QsweepError, match="no study that can be read") as caught:
        use(str(file), tmp_path)
    assert "\n" not in str(caught.value) and file.read_bytes() == content


def test_half_a_line_of_a_killed_writer_is_cut_off(tmp_path):
    file = tmp_path / "study.journal"
    assert [use("journal", tmp_path) for _ in range(2)] == [1, 2]
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"op_code": 4, "worker_i')
    assert use("journal", tmp_path) == 3
    assert file.read_bytes().startswith(whole) and not (tmp_path / "study.journal.damaged").exists()


def test_a_damaged_line_within_a_journal_does_not_pass_for_a_study(tmp_path, capsys):
    file = tmp_path / "study.journal"
    assert use("journal", tmp_path) == 1
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:1], b"garbage\n", *lines[1:]]))
    assert use("journal", tmp_path) == 1
    assert "line 2" in capsys.readouterr().err


@pytest.mark.parametrize("content", DATABASES.values(), ids=DATABASES)
def test_a_damaged_database_is_put_aside_unless_it_is_the_users(content, tmp_path, capsys):
    (tmp_path / "study.db").write_bytes(content)
    assert use(None, tmp_path) == 1
    assert "kept as study.db.damaged" in capsys.readouterr().err
    assert use("sqlite", tmp_path) == 2
    file = tmp_path / "mine.db"
    file.write_bytes(content)
    with pytest.raises(
        QsweepError, match="is no sqlite database|is damaged|no study that can be read"
    ):
        use(f"sqlite:///{file}", tmp_path)
    assert file.read_bytes() == content


@contextmanager
def read_only(file):
    """A file on a disk that is mounted read-only, which binds root as well."""
    command = ["mount", "--bind", "-o", "ro", str(file), str(file)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a read-only file needs mount: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(file)], check=True)


@pytest.mark.parametrize("where", ["journal", None])
def test_a_study_that_cannot_be_written_is_refused_at_once(where, tmp_path):
    assert use(where, tmp_path) == 1
    file = tmp_path / ("study.journal" if where else "study.db")
    with read_only(file), pytest.raises(QsweepError, match=r"(?i)read-?only") as caught:
        use(where, tmp_path)
    assert "\n" not in str(caught.value)
    assert use(where, tmp_path) == 2


def test_what_a_storage_raises_on_the_way_is_one_line(tmp_path):
    storage = open_storage(None, tmp_path)
    study = optuna.create_study(storage=storage, study_name="s")
    with (tmp_path / "study.db").open("r+b") as file:
        file.write(b"x" * 50_000)
    with (
        pytest.raises(QsweepError, match="the study cannot be read or written") as caught,
        storage_errors(),
    ):
        study.add_trial(optuna.trial.create_trial(value=1.0))
    assert "\n" not in str(caught.value)
    with pytest.raises(ZeroDivisionError), storage_errors():
        _ = 1 / 0


DAMAGED = {
    "key": 3, "name": [], "owner": None, "params": {"bits": 4}, "outcome": "x",
    "finding": {"record": "k"}, "reason": {},
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_trial_of_which_the_study_says_nonsense_is_free_to_be_run_again(name, tmp_path):
    from qsweep.search.objectives import parse_objective
    from qsweep.search.study import Study

    storage = open_storage(None, tmp_path)
    study = Study(storage, "s", [parse_objective("size_gb")], {})
    attributes = {"key": "k", "name": "n", "owner": "o", "params": {"bits": "4"}}
    for more in ({}, {name: DAMAGED[name]}):
        study.optuna.add_trial(
            optuna.trial.create_trial(value=1.0, user_attrs={**attributes, **more})
        )
    whole, damaged = study.entries()
    assert whole.state == "complete" and whole.params == {"bits": "4"}
    assert damaged.state == "failed" and not study.is_taken(damaged)
    assert "damaged" in damaged.reason
