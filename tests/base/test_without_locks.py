"""A store whose file system has no locks, or such that lock nothing: correct all the same."""

import errno
import os
import random
import subprocess
import sys
import textwrap
import time

import pytest

from qsweep.base import locks, owners
from qsweep.base.cleanup import remove_abandoned
from qsweep.base.manifest import open_entry
from qsweep.base.owners import SILENT_S, host, owner, temporaries, temporary
from qsweep.base.publish import publish
from qsweep.base.store import Store

MAKER = textwrap.dedent(
    """
    import os, pathlib, sys, time
    from qsweep.base import locks
    locks.try_lock = lambda descriptor: True  # a file system that says yes to everybody
    from qsweep.base.store import Store
    def slow(out):
        for number in range(4):
            (out / f"part{number}").write_bytes(os.urandom(4096))
            time.sleep(0.02)
        return {"maker": os.getpid()}
    print("ready", flush=True)
    sys.stdin.readline()
    store = Store(pathlib.Path(sys.argv[1]))
    for round in range(int(sys.argv[2])):
        entry, made = store.build("artifacts", {"round": round}, slow)
        assert store.find("artifacts", entry.path.name, full=True), "not what was written"
    """
)


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "try_lock", refuse)


def makers(root, count, rounds):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MAKER, str(root), str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    for one in started:
        assert one.stdout.readline() == "ready\n"
    for one in started:
        one.stdin.write("go\n")
        one.stdin.flush()
    return started


def test_ten_makers_of_the_same_at_once_some_of_them_killed(tmp_path):
    outputs, rounds = tmp_path / "out", 4
    store = Store(outputs / "store")
    # Each round finds something damaged in the place of the first entry that it makes.
    for round in range(rounds):
        entry, _ = store.build("artifacts", {"round": round}, lambda out: {"maker": 0})
        (entry.path / "extra").write_text("damaged")
    running = makers(store.root, 10, rounds)
    draw = random.Random(0)
    killed = draw.sample(running, 4)
    for one in killed:
        time.sleep(draw.uniform(0.01, 0.15))
        one.kill()
    for one in running:
        _, said = one.communicate(timeout=60)
        assert one in killed or one.returncode == 0, said
    remove_abandoned(outputs)
    assert len(list((store.root / "artifacts").iterdir())) == rounds  # and no leftovers
    for entry in (store.root / "artifacts").iterdir():
        assert open_entry(entry, full=True).content["maker"] in [one.pid for one in running]


def test_whoever_loses_takes_what_the_winner_made(tmp_path, no_locks):
    store = Store(tmp_path)

    def overtaken(out):
        (out / "file").write_text("second")
        store.build("artifacts", {"a": 1}, lambda out: {"who": "first"})
        return {"who": "second"}

    entry, made = store.build("artifacts", {"a": 1}, overtaken)
    assert (entry.content, made) == ({"who": "first"}, False)
    assert [p.name for p in (tmp_path / "artifacts").iterdir()] == [entry.path.name]


def test_a_good_one_put_there_meanwhile_is_not_deleted(tmp_path):
    place, other = tmp_path / "place", tmp_path / "other"
    mine = tmp_path / "mine"
    for folder, text in ((place, "damaged"), (other, "good"), (mine, "mine")):
        folder.mkdir()
        (folder / "file").write_text(text)
    looks = []

    def is_good():
        looks.append((place / "file").read_text())
        if len(looks) == 1:
            # Another maker replaces the damaged one between this look and what follows.
            place.rename(tmp_path / "aside")
            other.rename(place)
            return False
        return looks[-1] == "good"

    assert not publish(mine, place, is_good)
    assert looks == ["damaged", "good"] and (place / "file").read_text() == "good"


def test_one_that_was_moved_aside_by_mistake_goes_back(tmp_path, monkeypatch):
    place, mine = tmp_path / "place", tmp_path / "mine"
    for folder, text in ((place, "good"), (mine, "mine")):
        folder.mkdir()
        (folder / "file").write_text(text)
    from qsweep.base import publish as module

    looked = module._mark(place)
    stale = [(1, 2), (1, 2)]  # what this maker saw before and after its look, now long gone
    monkeypatch.setattr(module, "_mark", lambda path: stale.pop() if stale else looked)
    answers = [False, True]
    assert not publish(mine, place, lambda: answers.pop(0))
    assert (place / "file").read_text() == "good"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "place"]


def test_removing_and_looking_need_no_lock(tmp_path, no_locks):
    store = Store(tmp_path)
    entry, made = store.build("texts", {"a": 1}, lambda out: {})
    assert made
    store.remove("texts", entry.path.name)
    store.remove("texts", entry.path.name)
    assert not entry.path.exists()


@pytest.mark.parametrize("locked", [True, False], ids=["locks", "no-locks"])
def test_what_another_host_writes_stays_for_a_week(tmp_path, monkeypatch, request, locked):
    if not locked:
        request.getfixturevalue("no_locks")
    outputs = tmp_path / "out"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    token = f"{dead.pid}.0a1b2c3d.tmp"
    theirs = outputs / f"store/artifacts/.abc.another.{token}"
    ours = outputs / f"store/artifacts/.abc.{host()}.{token}"
    conversion = outputs / f"store/artifacts/.conversions/.abc.another.{token}"
    file = outputs / f"sweeps/t/.results.csv.another.{token}"
    for folder in (theirs, ours, conversion):
        (folder / "sub").mkdir(parents=True)
    file.parent.mkdir(parents=True)
    file.write_text("half")
    # Without locks nothing tells a container of this host's name from this host.
    assert remove_abandoned(outputs) == ([ours] if locked else [])
    now = time.time()
    monkeypatch.setattr(owners.time, "time", lambda: now + SILENT_S + 60)
    (theirs / "sub" / "weights").write_text("still at it")
    os.utime(theirs / "sub" / "weights", (now + SILENT_S, now + SILENT_S))
    left = {conversion, file} | (set() if locked else {ours})
    assert set(remove_abandoned(outputs)) == left
    assert theirs.exists()


def test_a_temporary_s_name_says_whose_it_is(tmp_path, monkeypatch):
    path = tmp_path / "results.v2.csv"
    found = temporary(path)
    assert owner(found) == ("results.v2.csv", host(), os.getpid())
    found.touch()
    temporary(tmp_path / "results.v2.csv.gz").touch()
    assert list(temporaries(path)) == [found]
    owners.host.cache_clear()
    monkeypatch.setattr(owners.socket, "gethostname", lambda: "gpu-7.a-rather-long.example.org")
    assert owner(temporary(path))[1] == host() and "." not in host() and len(host()) <= 27
    owners.host.cache_clear()
