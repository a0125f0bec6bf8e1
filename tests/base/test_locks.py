"""Locks between real processes, some of which are killed."""

import errno
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from qsweep.base import locks
from qsweep.base.errors import QsweepError
from qsweep.base.locks import FileLock, LockTimeout, device_lock, owner_of

SOURCE = Path(__file__).resolve().parents[2] / "src"

HOLD = """
import sys, time
from pathlib import Path
from qsweep.base.locks import FileLock
with FileLock(Path(sys.argv[1])):
    print("held", flush=True)
    {then}
"""

COUNT = """
import sys
from pathlib import Path
from qsweep.base.locks import FileLock
counter = Path(sys.argv[2])
for _ in range(50):
    with FileLock(Path(sys.argv[1])):
        number = int(counter.read_text())
        counter.write_text("")
        counter.write_text(str(number + 1))
"""


@pytest.fixture
def start():
    started = []

    def run(code, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "model.lock"


def test_owner_is_written_inside(path):
    lock = FileLock(path)
    assert not lock.held
    with lock:
        assert lock.held
        assert path.read_text() == f"{os.getpid()} {socket.gethostname()}\n"
        assert owner_of(path) == f"{os.getpid()} on {socket.gethostname()}"
    assert not lock.held and owner_of(path) is None
    with lock:  # again
        assert lock.held
    assert owner_of(path.with_name("missing")) is None


def test_who_waits_is_told_for_whom(path, start):
    holder = start(HOLD.format(then="time.sleep(0.7)"), path)
    assert holder.stdout.readline() == "held\n"
    notices = []
    started = time.monotonic()
    with FileLock(path, notice=notices.append):
        waited = time.monotonic() - started
    assert notices == [f"waiting for {holder.pid} on {socket.gethostname()}"]
    assert 0.3 < waited < 5


def test_time_out_names_the_owner(path, start):
    holder = start(HOLD.format(then="time.sleep(60)"), path)
    holder.stdout.readline()
    for timeout_s in (0, 0.3):
        started = time.monotonic()
        with pytest.raises(LockTimeout, match=f"still locked by {holder.pid} on "):
            FileLock(path, timeout_s=timeout_s).acquire()
        assert timeout_s <= time.monotonic() - started < timeout_s + 1


def test_killed_owners_lock_is_taken_over(path, start):
    holder = start(HOLD.format(then="time.sleep(60)"), path)
    holder.stdout.readline()
    notices = []

    def strike(line):
        notices.append(line)
        holder.kill()

    with FileLock(path, timeout_s=10, notice=strike):
        assert owner_of(path) == f"{os.getpid()} on {socket.gethostname()}"
    assert len(notices) == 1


def test_killed_owners_lock_is_not_kept_by_its_children(path, start):
    # A program that it started and a process that it forked, both of which outlive it.
    then = (
        "import os, subprocess; child = subprocess.Popen(['sleep', '60']); fork = os.fork()\n"
        "    if not fork: time.sleep(60)\n"
        "    print(child.pid, fork, flush=True); time.sleep(60)"
    )
    holder = start(HOLD.format(then=then), path)
    holder.stdout.readline()
    orphans = [int(pid) for pid in holder.stdout.readline().split()]
    holder.kill()
    try:
        with FileLock(path, timeout_s=3):
            for pid in orphans:
                os.kill(pid, 0)  # still there
    finally:
        for pid in orphans:
            os.kill(pid, 9)


def test_a_fork_does_not_own_or_release_its_parents_lock(path):
    with FileLock(path) as lock:
        child = multiprocessing.get_context("fork").Process(target=lambda: lock.release())
        child.start()
        child.join()
        assert child.exitcode == 0
        with pytest.raises(LockTimeout):
            FileLock(path, timeout_s=0).acquire()


def test_two_contenders_never_hold_it_together(path, tmp_path, start):
    counter = tmp_path / "counter"
    counter.write_text("0")
    contenders = [start(COUNT, path, counter) for _ in range(2)]
    for contender in contenders:
        contender.communicate(timeout=60)
        assert contender.returncode == 0
    assert counter.read_text() == "100"


def test_threads_and_objects_of_one_process_exclude_each_other(path):
    with FileLock(path) as first:
        with pytest.raises(LockTimeout, match=f"still locked by {os.getpid()}"):
            FileLock(path, timeout_s=0).acquire()
        with pytest.raises(RuntimeError, match="already held"):
            first.acquire()
        taken = threading.Event()

        def take():
            with FileLock(path):
                taken.set()

        thread = threading.Thread(target=take)
        thread.start()
        assert not taken.wait(0.2)
    thread.join(5)
    assert taken.is_set()


def test_an_error_inside_releases(path):
    with pytest.raises(KeyError), FileLock(path):
        raise KeyError
    with FileLock(path, timeout_s=0):
        pass


def test_waiting_leaks_no_descriptors(path):
    with FileLock(path):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with pytest.raises(LockTimeout):
                FileLock(path, timeout_s=0).acquire()
        assert len(os.listdir("/proc/self/fd")) == before


def test_unusable_places_are_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(QsweepError, match="file/x.lock: cannot be locked: "):
        FileLock(tmp_path / "file" / "x.lock").acquire()
    with pytest.raises(QsweepError, match="cannot be locked: Is a directory"):
        FileLock(tmp_path).acquire()

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.raises(QsweepError, match="its file system has no locks"):
        FileLock(tmp_path / "x.lock").acquire()


def test_one_lock_per_device_of_a_host(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with device_lock("cuda:0") as lock:
        assert lock.path.parent == tmp_path and ":" not in lock.path.name
        assert socket.gethostname() in lock.path.name and f"-{os.getuid()}-" in lock.path.name
        with device_lock("cuda:1", timeout_s=0):
            pass
        with pytest.raises(LockTimeout):
            device_lock("cuda:0", timeout_s=0).acquire()


def test_no_timing_goes_on_without_its_lock(tmp_path, monkeypatch):
    """A figure that another one disturbed looks like any other."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.raises(QsweepError, match="has no locks; set TMPDIR to another one"):
        device_lock("cpu").acquire()


def test_an_empty_folder_in_a_locks_place_is_removed_and_a_full_one_refused(tmp_path):
    path = tmp_path / "some.lock"
    path.mkdir()
    with FileLock(path):
        assert path.is_file()
    path.unlink()
    (path / "sub").mkdir(parents=True)
    with pytest.raises(QsweepError, match="some.lock: cannot be locked") as caught:
        FileLock(path).acquire()
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(10)
def test_a_pipe_in_a_locks_place_is_no_lock_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "some.lock")
    with pytest.raises(QsweepError, match="cannot be locked"):
        FileLock(tmp_path / "some.lock").acquire()
