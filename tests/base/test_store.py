import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from qsweep.base.errors import ArtifactCorrupt
from qsweep.base.file_hashes import file_hash
from qsweep.base.store import Store, open_entry

IDENTITY = {"what": "test"}


def make(out):
    (out / "weights.bin").write_bytes(b"w" * 1000)
    (out / "sub").mkdir()
    (out / "sub" / "more.txt").write_text("more")
    return {"answer": 42}


def build(store, maker=make):
    return store.build("artifacts", IDENTITY, maker)


def test_an_entry_is_made_once(tmp_path):
    store = Store(tmp_path)
    entry, made = build(store)
    again, made_again = build(store, lambda out: pytest.fail("made twice"))
    assert (made, made_again) == (True, False)
    assert entry.content == again.content == {"answer": 42}
    assert sorted(p.name for p in entry.path.iterdir()) == ["manifest.json", "sub", "weights.bin"]


def test_a_maker_that_raises_leaves_nothing(tmp_path):
    store = Store(tmp_path)

    def fail(out):
        (out / "half").write_text("half")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        build(store, fail)
    assert list((tmp_path / "artifacts").iterdir()) == []


@pytest.mark.parametrize("damage", ["truncate", "edit", "delete", "manifest"])
def test_damage_is_found_and_the_entry_rebuilt(tmp_path, damage):
    store = Store(tmp_path)
    entry, _ = build(store)
    weights = entry.path / "weights.bin"
    if damage == "truncate":
        weights.write_bytes(b"w" * 10)
    elif damage == "edit":
        weights.write_bytes(b"v" * 1000)
    elif damage == "delete":
        weights.unlink()
    else:
        (entry.path / "manifest.json").write_text('{"version": 1, "fil')
    with pytest.raises(ArtifactCorrupt):
        open_entry(entry.path)
    assert store.find("artifacts", entry.path.name) is None
    rebuilt, made = build(store)
    assert made
    assert (rebuilt.path / "weights.bin").read_bytes() == b"w" * 1000


def test_an_edit_that_keeps_size_and_time_is_found_by_the_full_check_only(tmp_path):
    store = Store(tmp_path)
    entry, _ = build(store)
    weights = entry.path / "weights.bin"
    stat = weights.stat()
    weights.write_bytes(b"v" * 1000)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    open_entry(entry.path)
    with pytest.raises(ArtifactCorrupt, match="not what was written"):
        open_entry(entry.path, full=True)


def test_a_copied_store_is_still_valid(tmp_path):
    store = Store(tmp_path)
    entry, _ = build(store)
    os.utime(entry.path / "weights.bin")
    assert store.find("artifacts", entry.path.name)


def test_a_killed_maker_leaves_no_entry_and_its_leftovers_are_removed(tmp_path):
    script = textwrap.dedent(
        """
        import pathlib, sys, time
        from qsweep.base.store import Store
        def slow(out):
            (out / "half").write_text("half")
            print("started", flush=True)
            time.sleep(60)
        Store(pathlib.Path(sys.argv[1])).build("artifacts", {"what": "test"}, slow)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = Store(tmp_path)
    started = time.monotonic()
    entry, made = build(store)
    assert made and time.monotonic() - started < 5
    assert [p.name for p in (tmp_path / "artifacts").iterdir()] == [entry.path.name]
    assert not (entry.path / "half").exists()


def test_a_file_hash_follows_the_content(tmp_path):
    store = Store(tmp_path / "store")
    file = tmp_path / "file"
    file.write_text("one")
    first = file_hash(store, file)
    assert file_hash(store, file) == first
    file.write_text("other")
    assert file_hash(store, file) != first
