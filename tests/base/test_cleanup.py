"""What killed processes leave behind goes at the next start, and never what somebody uses."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from qsweep.base.cleanup import remove_abandoned
from qsweep.base.files import write_json
from qsweep.base.locks import FileLock
from qsweep.base.scratch import ScratchFolder
from qsweep.base.store import Store
from qsweep.commands.prune import main as prune

HOLDER = textwrap.dedent(
    """
    import contextlib, pathlib, sys, time
    from qsweep.base.store import Store
    from qsweep.base.scratch import ScratchFolder
    outputs = pathlib.Path(sys.argv[1])
    def slow(out):
        (out / "work").mkdir()
        (out / "work" / "half").write_text("half")
        with ScratchFolder() as folder:
            print(folder, flush=True)
            time.sleep(60)
    Store(outputs / "store").build("artifacts", {"what": "test"}, slow)
    """
)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder for temporary files that only this test uses."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def maker(tmp_path, scratch):
    """A process in the midst of making an entry."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert Path(process.stdout.readline().strip()).parent == scratch
    yield process
    process.kill()
    process.wait()


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_live_process_makes_is_left_alone_and_goes_once_it_is_dead(
    tmp_path, scratch, maker, capsys
):
    outputs = tmp_path / "out"
    (entry,) = (outputs / "store/artifacts").glob(".*.tmp")
    (folder,) = scratch.iterdir()
    assert remove_abandoned(outputs) == []
    assert (entry / "work/half").exists() and folder.exists()
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    assert sorted(remove_abandoned(outputs)) == sorted([entry, folder])
    assert not entry.exists() and not folder.exists()


def test_a_stopped_process_is_a_live_one(tmp_path, maker):
    maker.send_signal(signal.SIGSTOP)
    assert remove_abandoned(tmp_path / "out") == []


def test_files_of_dead_writers_go_wherever_they_are_written(tmp_path, scratch):
    outputs, pid = tmp_path / "out", dead_pid()
    left = [
        outputs / f".probe.{pid}.tmp",
        outputs / f"sweeps/t/.sweep.json.{pid}.tmp",
        outputs / f"sweeps/t/trials/.key.json.{pid}.tmp",
        outputs / f"sweeps/a/b/.results.csv.{pid}.tmp",
        outputs / f"store/hashes/.abc.{pid}.tmp",
        outputs / f"store/catalogues/.lm_eval-1.json.{pid}.tmp",
    ]
    entries = [outputs / "store" / kind / ".abc.tmp" for kind in ("texts", "tasks", "models")]
    entries += [outputs / "store/texts/.abc.manifest.tmp"]
    entries += [outputs / "store/artifacts/.conversions/.abc.tmp"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    for path in entries:
        (path / "sub").mkdir(parents=True)
    folder = scratch / f"qsweep-{pid}-abcd1234"
    folder.mkdir()
    kept = [outputs / "sweeps/t/notes.tmp", scratch / "qsweep-notes", scratch / "others-1-a"]
    kept += [outputs / f"sweeps/t/.mine.{os.getppid()}.tmp"]  # that process lives
    for path in kept:
        path.write_text("somebody's own")
    assert sorted(remove_abandoned(outputs)) == sorted([*left, *entries, folder])
    assert all(path.exists() for path in kept)


def test_a_number_that_another_process_has_by_now_protects_nothing(tmp_path, scratch):
    file = tmp_path / "out" / f".x.{os.getpid()}.tmp"
    file.parent.mkdir()
    file.write_text("half")
    assert remove_abandoned(tmp_path / "out") == []
    os.utime(file, (1e9, 1e9))  # long before this process began
    assert remove_abandoned(tmp_path / "out") == [file]


def test_what_is_locked_in_another_container_is_in_use(tmp_path, scratch):
    import fcntl

    folder = scratch / f"qsweep-{dead_pid()}-abcd1234"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert remove_abandoned(tmp_path / "out") == []
    os.close(descriptor)
    assert remove_abandoned(tmp_path / "out") == [folder]


def test_an_entry_under_a_lock_stays(tmp_path, scratch):
    outputs = tmp_path / "out"
    half = outputs / "store/references/.abc.tmp"
    half.mkdir(parents=True)
    conversion = outputs / "store/artifacts/.conversions/.abc.tmp"
    conversion.mkdir(parents=True)
    with (
        Store(outputs / "store").lock("references", "abc"),
        FileLock(conversion.with_name("abc.lock")),
    ):
        assert remove_abandoned(outputs) == []
    assert sorted(remove_abandoned(outputs)) == sorted([half, conversion])


def test_a_link_is_removed_and_what_it_points_to_stays(tmp_path, scratch):
    target = tmp_path / "target"
    target.mkdir()
    link = tmp_path / "out/store/artifacts/.abc.tmp"
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    (scratch / f"qsweep-{dead_pid()}-abcd1234").symlink_to(target)
    remove_abandoned(tmp_path / "out")
    assert target.is_dir() and not link.is_symlink()


def test_a_scratch_folder_is_gone_in_the_end(scratch):
    with ScratchFolder() as folder:
        assert Path(folder).name.startswith(f"qsweep-{os.getpid()}-")
        (Path(folder) / "file").write_text("x")
    assert list(scratch.iterdir()) == []


def test_prune_removes_leftovers_only_where_it_may_delete(tmp_path, scratch, capsys):
    outputs = tmp_path / "out"
    half = outputs / "store/artifacts/.abc.tmp"
    half.mkdir(parents=True)
    assert prune(["--outputs", str(outputs)]) == 0
    assert half.exists() and "1 half-written" in capsys.readouterr().out
    assert prune(["--outputs", str(outputs), "--delete"]) == 0
    assert not half.exists() and "1 leftovers" in capsys.readouterr().out


def test_a_writer_that_is_killed_leaves_a_file_that_goes(tmp_path, scratch):
    script = textwrap.dedent(
        """
        import os, pathlib, sys
        os.fsync = lambda descriptor: os.kill(os.getpid(), 9)
        from qsweep.base.files import write_json
        write_json(pathlib.Path(sys.argv[1]), {})
        """
    )
    file = tmp_path / "out/sweeps/t/sweep.json"
    subprocess.run([sys.executable, "-c", script, str(file)])
    (left,) = file.parent.iterdir()
    assert remove_abandoned(tmp_path / "out") == [left]
    write_json(file, {})
    assert [p.name for p in file.parent.iterdir()] == ["sweep.json"]
