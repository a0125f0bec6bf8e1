"""A remote that refuses, is full, or goes away: one line each, and what was made here stands."""

import errno
import json
import os
import sys
import time

import fsspec  # noqa: F401
import pytest

from helpers.machine import free_port, tmpfs
from helpers.s3 import KEY_ID, SECRET, running
from qsweep.base import objects as objects_module
from qsweep.base import remote as remote_module
from qsweep.base import remote_entries as entries
from qsweep.base.errors import ConfigError
from qsweep.base.objects import Objects, RemoteError
from qsweep.base.remote_settings import RemoteSettings
from qsweep.base.store import Store


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(objects_module, "_PAUSES_S", (0.01, 0.01))


def make(out):
    (out / "weights.bin").write_bytes(b"w" * 2_000_000)
    return {"answer": 42}


def one_line(text, *parts):
    lines = text.strip().splitlines()
    assert len(lines) == 1 and all(part in lines[0] for part in parts), text
    return lines[0]


def unsent(store):
    return [kind for kind, _ in store.remote.unsent.all()]


def test_a_usable_remote_keeps_nothing_of_its_check(node, objects):
    node("a").remote.check()
    node("b", push=False).remote.check()
    assert objects.names("") == {}


def test_a_folder_that_is_not_mounted_is_refused_and_not_made(tmp_path):
    store = Store(tmp_path / "a", RemoteSettings(f"file://{tmp_path}/mnt"))
    with pytest.raises(ConfigError) as refused:
        store.remote.check()
    one_line(str(refused.value), "store.remote=file://", "is not there; mount it", "=null")
    assert store.build("texts", {"n": 1}, make)[1]
    assert not (tmp_path / "mnt").exists() and unsent(store) == ["texts"]


@pytest.fixture
def read_only(tmp_path):
    import subprocess

    with tmpfs(tmp_path / "mounted", "16m") as folder:
        Store(tmp_path / "first", RemoteSettings(f"file://{folder}")).build("texts", {"n": 0}, make)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield f"file://{folder}"


def test_a_folder_that_refuses_writes_is_noticed_at_the_start_and_may_be_read(
    read_only, tmp_path, capsys
):
    store = Store(tmp_path / "a", RemoteSettings(read_only))
    with pytest.raises(ConfigError) as refused:
        store.remote.check()
    one_line(str(refused.value), "Read-only file system", "store.push=false only reads")
    store = Store(tmp_path / "a", RemoteSettings(read_only, push=False))
    store.remote.check()
    assert not store.build("texts", {"n": 0}, make)[1]
    assert store.build("texts", {"n": 1}, make)[1]
    assert capsys.readouterr().err == ""


def test_a_full_remote_loses_nothing_and_says_so_once(tmp_path, capsys, monkeypatch):
    with tmpfs(tmp_path / "mounted", "5m") as folder:
        store = Store(tmp_path / "a", RemoteSettings(f"file://{folder}"))
        made = [store.build("artifacts", {"n": n}, make) for n in range(4)]
        assert all(fresh for _, fresh in made)
        one_line(capsys.readouterr().err, "No space left", "`qsweep store push` sends what")
        assert unsent(store) == ["artifacts"] * 2
        # Two are there, whole; nothing of the third is.
        assert len(store.remote.objects.names("manifests/")) == 2
        assert len(store.remote.objects.names("files/")) == 2
        other = Store(tmp_path / "b", RemoteSettings(f"file://{folder}"))
        assert [bool(other.find("artifacts", entry.path.name)) for entry, _ in made] == [
            *(True, True),
            *(False, False),
        ]
        # Later there is room, and another process tries once more.
        for file in (folder / "files/artifacts" / made[0][0].path.name).rglob("*.bin"):
            file.unlink()
        again = Store(tmp_path / "a", RemoteSettings(f"file://{folder}"))
        again.remote.settle(again.root)
        assert len(unsent(again)) == 1
        assert "lacks 1 entry that could not be sent" in capsys.readouterr().err


def test_a_remote_that_goes_away_in_the_middle(node, url, tmp_path, capsys, monkeypatch):
    if url.startswith("s3"):
        pytest.skip("a server of its own goes away below")
    store = node("a")
    store.build("texts", {"n": 0}, make)
    (tmp_path / "mounted").rename(tmp_path / "away")
    assert store.build("texts", {"n": 1}, make)[1]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("is not there; mount it" in line for line in lines)
    assert "counts as absent" in lines[0] and "`qsweep store push`" in lines[1]
    (tmp_path / "away").rename(tmp_path / "mounted")
    assert unsent(store) == ["texts"]
    store = node("a")
    store.remote.settle(store.root)
    assert unsent(store) == [] and capsys.readouterr().err == ""
    assert len(store.remote.objects.names("manifests/texts/")) == 2


def test_the_end_tries_once_more_however_lately_it_failed(tmp_path, capsys):
    (folder := tmp_path / "mounted").mkdir()
    store = Store(tmp_path / "a", RemoteSettings(f"file://{folder}"))
    folder.rename(tmp_path / "away")
    for n in range(2):
        store.build("texts", {"n": n}, make)
    capsys.readouterr()
    store.remote.settle(store.root)
    assert "lacks 2 entries that could not be sent" in capsys.readouterr().err
    (tmp_path / "away").rename(folder)
    store.remote.settle(store.root)
    assert unsent(store) == [] and capsys.readouterr().err == ""


@pytest.mark.cluster
def test_a_server_that_goes_away_in_the_middle(tmp_path, capsys, monkeypatch):
    with running() as server:
        server.client().create_bucket(Bucket="shared")
        store = Store(tmp_path / "a", RemoteSettings("s3://shared"))
        store.build("texts", {"n": 0}, make)
        server.stop()
        started = time.monotonic()
        for n in range(1, 6):
            assert store.build("texts", {"n": n}, make)[1]
        assert store.find("texts", "0" * 32) is None
        # One failed to be read and one to be written; the others asked nothing.
        assert time.monotonic() - started < 60
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2 and all("Could not connect" in line for line in lines)
        assert "counts as absent" in lines[0] and "`qsweep store push`" in lines[1]
        assert unsent(store) == ["texts"] * 5
        with pytest.raises(ConfigError, match="Could not connect"):
            store.remote.check()


@pytest.mark.cluster
def test_a_bucket_that_is_not_there_or_refuses(s3_bucket, s3_server, tmp_path, monkeypatch):
    with pytest.raises(ConfigError) as refused:
        Store(tmp_path, RemoteSettings("s3://no-such-bucket/x")).remote.check()
    one_line(str(refused.value), "store.remote=s3://no-such-bucket/x", "does not exist")
    bucket = s3_bucket.removeprefix("s3://")
    arn = f"arn:aws:s3:::{bucket}/*"
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": arn}
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    s3_server.client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    with pytest.raises(ConfigError) as refused:
        Store(tmp_path, RemoteSettings(s3_bucket)).remote.check()
    line = one_line(str(refused.value), "cannot be written", "store.push=false only reads")
    assert SECRET not in line and KEY_ID not in line
    Store(tmp_path, RemoteSettings(s3_bucket, push=False)).remote.check()


@pytest.mark.cluster
def test_large_files_go_and_come_in_parts(s3_bucket, tmp_path):
    size = 130 << 20  # of several parts of 50 MiB
    file = tmp_path / "large"
    with file.open("wb") as out:
        out.truncate(size)
        out.write(os.urandom(1 << 20))
    objects = Objects(s3_bucket)
    objects.upload(file, "large")
    assert objects.names("") == {"large": size}
    assert objects.download("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_a_driver_that_is_missing_is_named(monkeypatch):

    for scheme, package, install in (
        ("s3", "s3fs", 'pip install "qsweep[s3]"'),
        ("gs", "gcsfs", "pip install gcsfs"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        known = sys.modules["fsspec.registry"]._registry
        monkeypatch.delitem(known, scheme, raising=False)
        with pytest.raises(RemoteError) as missing:
            Objects(f"{scheme}://bucket").read("x")
        one_line(str(missing.value), f"needs {package}: {install}")


def test_what_fails_for_a_moment_is_tried_again_and_no_message_holds_a_secret(
    node, tmp_path, monkeypatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    objects = Objects(f"file://{tmp_path}")
    calls = []

    def flaky(times):
        def call():
            calls.append(1)
            if len(calls) <= times:
                raise ConnectionError("reset by peer, signed with wJalrXUtnFEMI")
            return "answer"

        return call

    assert objects._tried("read", flaky(2)) == "answer" and len(calls) == 3
    calls.clear()
    with pytest.raises(RemoteError) as failed:
        objects._tried("read", flaky(9))
    assert len(calls) == 3
    one_line(str(failed.value), "cannot be read: reset by peer, signed with ***")


def test_after_a_failure_it_is_left_in_peace_for_a_while(tmp_path, capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(remote_module.time, "monotonic", lambda: now[0])
    (folder := tmp_path / "mounted").mkdir()
    store = Store(tmp_path / "a", RemoteSettings(f"file://{folder}"))
    asked = []
    monkeypatch.setattr(store.remote.objects, "_in_folder", False)

    def refuse(name):
        asked.append(name)
        raise RemoteError("gone")

    monkeypatch.setattr(store.remote.objects, "read", refuse)
    for n in range(3):
        assert store.find("texts", str(n) * 32) is None
    assert len(asked) == 1 and capsys.readouterr().err.count("gone") == 1
    now[0] += 61
    store.find("texts", "a" * 32)
    assert len(asked) == 2


def test_a_listing_that_fails_makes_nothing_be_sent_again(node, objects, monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(remote_module.time, "monotonic", lambda: now[0])
    keys = [node("a").build("texts", {"n": n}, make)[0].path.name for n in range(2)]
    fresh = Store(node("a").root).build("packs", {"n": 0}, make)[0].path
    written = objects.times("manifests/")
    store, asked = node("a"), []
    really = store.remote.objects.names

    def fails_once(prefix):
        asked.append(prefix)
        if len(asked) == 1:
            raise RemoteError("gone")
        return really(prefix)

    monkeypatch.setattr(store.remote.objects, "names", fails_once)
    with store.planning():
        assert store.look("texts", "0" * 32) is None  # the listing that fails
        assert all(store.look("texts", key) for key in keys)
        assert store.look("texts", "1" * 32) is None and len(asked) == 1
        now[0] += 61  # it takes long, and in the end the remote answers again
    assert objects.times("manifests/") == written
    one_line(capsys.readouterr().err, "gone", "counts as absent")
    with store.planning():  # and only what is really missing is sent
        assert store.look("texts", keys[0]) and store.look("packs", fresh.name)
    assert " lacks 1 entry of " in capsys.readouterr().err
    times = objects.times("manifests/")
    assert {name: times.pop(name) for name in written} == written
    assert [*times] == [entries.manifest_name("packs", fresh.name)]


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path, capsys, monkeypatch
):
    (folder := tmp_path / "mounted").mkdir()
    store = Store(tmp_path / "a", RemoteSettings(f"file://{folder}"))
    key = store.build("texts", {"n": 0}, make)[0].path.name
    objects = store.remote.objects
    old = time.time() - 30 * 86400
    for file in folder.rglob("*.bin"):
        os.utime(file, (old, old))
    listed = os.scandir

    def refuse(path="."):
        if "manifests" in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return listed(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        # Its files would be deleted as those that no manifest names.
        with pytest.raises(RemoteError, match="cannot be read: Input/output error"):
            entries.left_over(objects, "texts")
        fresh = Store(tmp_path / "b", RemoteSettings(f"file://{folder}"))
        with fresh.planning():
            assert fresh.look("texts", key) is None
        one_line(capsys.readouterr().err, "Input/output error", "counts as absent")
    assert entries.left_over(objects, "texts") == []
    # Nor is one that is not mounted any more, nor of which a file goes meanwhile.
    (folder / "files" / "link").symlink_to(tmp_path / "nowhere")
    assert len(objects.names("")) == 2
    folder.rename(tmp_path / "away")
    for ask in (objects.names, objects.read, lambda name: objects.download(name, tmp_path / "x")):
        with pytest.raises(RemoteError, match="is not there; mount it"):
            ask("manifests/")


def test_a_failed_listing_of_one_kind_keeps_nothing_of_another_back(node, monkeypatch, capsys):
    store = node("a")
    alone = Store(store.root)
    made = [alone.build(kind, {"n": 0}, make)[0].path for kind in ("packs", "texts")]
    really = store.remote.objects.names

    def fails(prefix):
        if "texts" in prefix:
            raise RemoteError("gone")
        return really(prefix)

    with monkeypatch.context() as patch:
        patch.setattr(store.remote.objects, "names", fails)
        with store.planning():
            assert all(store.look(place.parent.name, place.name) for place in made)
    assert node("b").look("packs", made[0].name) and not node("b").look("texts", made[1].name)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_what_was_found_damaged_while_planning_is_sent_in_the_end(node, objects, capsys):
    place = node("a").build("artifacts", {"n": 0}, make)[0].path
    (file,) = objects.names("files/")
    objects.delete(file)
    store = node("b")
    with store.planning():
        assert not store.find("artifacts", place.name)
        assert "is not there; it counts as absent" in capsys.readouterr().err
        assert Store(store.root).build("artifacts", {"n": 0}, make)[1]
        assert store.find("artifacts", place.name)
    assert node("c").find("artifacts", place.name)


@pytest.mark.cluster
def test_nobody_listens(tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(ConfigError) as refused:
        Store(tmp_path, RemoteSettings("s3://bucket/folder")).remote.check()
    one_line(str(refused.value), "Could not connect", "store.remote=null does without")
