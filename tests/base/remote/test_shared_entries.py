"""What one machine makes another finds, whole, and nothing else."""

import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from qsweep.base import remote_entries as entries
from qsweep.base.manifest import open_entry
from qsweep.base.objects import Objects
from qsweep.base.owners import SILENT_S, temporary
from qsweep.base.store import Store

IDENTITY = {"what": "test"}


def make(out, weights=b"w" * 1000):
    (out / "weights.bin").write_bytes(weights)
    (out / "sub dir").mkdir()
    (out / "sub dir" / "more #1.txt").write_text("more")
    return {"answer": 42}


def never(out):
    pytest.fail("made anew")


def build(store, maker=make, kind="artifacts"):
    return store.build(kind, IDENTITY, maker)


def test_what_one_makes_another_has(node, objects):
    here, made = build(node("a"))
    there, made_there = build(node("b"), never)
    assert (made, made_there) == (True, False)
    assert there.content == here.content == {"answer": 42}
    assert (there.path / "sub dir/more #1.txt").read_text() == "more"
    assert (there.path / "manifest.json").read_bytes() == (here.path / "manifest.json").read_bytes()
    open_entry(there.path, full=True)
    # Nothing is left of how it came, on either side.
    assert [p.name for p in there.path.parent.iterdir()] == [there.path.name]
    names = sorted(objects.names(""))
    assert names[0].startswith(f"files/artifacts/{here.path.name}/")
    assert names[2:] == [f"manifests/artifacts/{here.path.name}.json"]


def test_every_way_of_asking_finds_it(node):
    key = build(node("a"))[0].path.name
    for ask in (
        lambda store: store.find("artifacts", key),
        lambda store: store.find("artifacts", key, full=True),
        lambda store: store.require("artifacts", key),
    ):
        store = node(f"node{id(ask)}")
        assert (ask(store).path / "weights.bin").stat().st_size == 1000
    assert node("z").find("artifacts", "0" * 32) is None


def test_planning_knows_of_it_and_fetches_nothing(node):
    key = build(node("a"))[0].path.name
    store = node("b")
    with store.planning():
        found = store.look("artifacts", key)
        assert found.content == {"answer": 42} and found.path == store.path("artifacts", key)
        assert store.look("artifacts", "0" * 32) is None
    assert not found.path.exists()
    assert store.find("artifacts", key).path.exists()


def test_a_listing_lasts_no_longer_than_the_planning(node):
    store = node("b")
    with store.planning():
        assert store.look("artifacts", "0" * 32) is None
        key = build(node("a"))[0].path.name
        assert store.look("artifacts", key) is None  # it was listed before
    assert store.look("artifacts", key) is not None


def test_what_was_made_before_there_was_a_remote_is_sent_once_it_is_looked_at(
    node, tmp_path, capsys
):
    alone = Store(tmp_path / "a" / "store")
    keys = [alone.build("texts", {"n": n}, make)[0].path.name for n in range(3)]
    store = node("a")
    assert store.find("texts", keys[0])
    with store.planning():
        assert all(store.look("texts", key) for key in keys)
        assert capsys.readouterr().err == ""
    assert " lacks 2 entries of 0.0000 GB: sent now" in capsys.readouterr().err
    other = node("b")
    assert all(other.find("texts", key) for key in keys)
    with node("a").planning():
        assert store.look("texts", keys[0])
    assert capsys.readouterr().err == ""


def test_reading_alone_sends_nothing(node, objects):
    store = node("a", push=False)
    entry, made = build(store)
    with store.planning():
        assert store.find("artifacts", entry.path.name)
    assert made and objects.names("") == {}
    build(node("b"), lambda out: make(out, b"v" * 1000))
    assert build(node("c", push=False), never)[0].content == {"answer": 42}


def test_an_entry_without_its_manifest_is_none(node, objects):
    key = build(node("a"))[0].path.name
    objects.delete(entries.manifest_name("artifacts", key))
    store = node("b")
    assert store.look("artifacts", key) is None and store.find("artifacts", key) is None
    entry, made = build(store)
    assert made and build(node("c"), never)[0].content == entry.content


def test_what_is_removed_to_be_made_anew_does_not_come_back(node):
    key = build(node("a"))[0].path.name
    store = node("b")
    assert store.find("artifacts", key)
    store.remove("artifacts", key)
    assert store.find("artifacts", key) is None and store.look("artifacts", key) is None
    assert build(store, lambda out: make(out, b"v" * 1000))[1]
    entry, made = build(node("c"), never)
    assert not made and (entry.path / "weights.bin").read_bytes() == b"v" * 1000


def test_looking_for_what_another_process_makes_does_not_wait(node):
    """It may be at it for hours, and the remote has nothing of it."""
    store = node("a")
    with store.lock("artifacts", "0" * 32):
        assert store.find("artifacts", "0" * 32, full=True) is None


def damaged(objects, key, damage):
    (file,) = (name for name in objects.names("files/artifacts/") if name.endswith("weights.bin"))
    if damage == "truncated":
        objects.write(file, b"w" * 10)
    elif damage == "altered":
        objects.write(file, b"v" * 1000)
    elif damage == "missing":
        objects.delete(file)
    else:
        name = entries.manifest_name("artifacts", key)
        objects.write(name, objects.read(name).replace(b"42", b"43"))
    return file if damage != "manifest" else name


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "manifest"])
def test_what_is_not_what_was_sent_is_made_anew_and_sent_again(node, objects, damage, capsys):
    key = build(node("a"))[0].path.name
    where = damaged(objects, key, damage)
    entry, made = build(node("b"))
    assert made
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f"/{where}" in said[0]
    assert said[0].startswith("note: ") and said[0].endswith("; it counts as absent")
    again, made_again = build(node("c"), never)
    assert not made_again and (again.path / "weights.bin").read_bytes() == b"w" * 1000
    assert again.content == entry.content
    assert capsys.readouterr().err == ""


def test_a_manifest_that_names_files_elsewhere_is_none(node, objects, tmp_path):
    from qsweep.base.manifest import MANIFEST, _write, read_manifest

    entry, _ = build(node("a"))
    manifest = read_manifest(entry.path)
    body = {
        "version": 2,
        "kind": "artifacts",
        "identity": manifest.identity,
        "content": manifest.content,
        "files": {"../../../evil": vars(manifest.files["weights.bin"])},
    }
    _write(tmp_path / MANIFEST, body)
    objects.write(
        entries.manifest_name("artifacts", entry.path.name), (tmp_path / MANIFEST).read_bytes()
    )
    assert node("b").find("artifacts", entry.path.name) is None
    assert not list(tmp_path.rglob("evil"))


def test_two_makers_of_one_key_do_not_mix(node, objects, tmp_path, monkeypatch):
    """Both make it without knowing of the other, and send it at the same moment."""
    stores = [Store(tmp_path / name / "store") for name in "ab"]
    places = [
        build(store, lambda out, n=n: make(out, bytes([n]) * 300_000))[0].path
        for n, store in enumerate(stores)
    ]
    threads = [threading.Thread(target=entries.send, args=(objects, place)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entry, _ = build(node("c"), never)
    assert (entry.path / "weights.bin").read_bytes() in [bytes([n]) * 300_000 for n in (0, 1)]
    assert len({name.split("/")[3] for name in objects.names("files/")}) == 2
    assert entries.left_over(objects, "artifacts") == []  # somebody may still be reading it
    now = time.time()
    monkeypatch.setattr(entries.time, "time", lambda: now + SILENT_S + 60)
    left = entries.left_over(objects, "artifacts")
    assert len(left) == 2
    for name in left:
        objects.delete(name)
    assert build(node("d"), never)[0].content == {"answer": 42}
    assert len({name.split("/")[3] for name in objects.names("files/")}) == 1


def made_alone(tmp_path, name, weights=b"w" * 1000):
    """An entry that lies in a machine's store, and was not sent."""
    return build(Store(tmp_path / name / "store"), lambda out: make(out, weights))[0].path


def before(monkeypatch, objects, method, act, when=lambda name: True):
    """Have something happen once, just before an operation."""
    really, done = getattr(objects, method), []

    def watched(*arguments):
        if not done and when(str(arguments[-1])):
            done.append(True)
            act()
        return really(*arguments)

    monkeypatch.setattr(objects, method, watched)
    return done


def test_what_another_maker_is_sending_is_not_deleted(node, url, tmp_path, monkeypatch):
    key = build(node("a"))[0].path.name
    place, sender, pruner = made_alone(tmp_path, "b", b"v" * 1000), Objects(url), Objects(url)

    def prune():
        entries.delete(pruner, "artifacts", key)
        (left,) = pruner.names("files/")  # the first of two files; nothing of the deleted entry
        assert entries._named_folder(pruner, "artifacts", key) is None

    done = before(monkeypatch, sender, "upload", prune, lambda name: name.endswith("weights.bin"))
    assert entries.send(sender, place) == 1004 and done
    entry, _ = build(node("c"), never)
    assert (entry.path / "weights.bin").read_bytes() == b"v" * 1000
    now = time.time()
    monkeypatch.setattr(entries.time, "time", lambda: now + 24 * 3600)
    entries.delete(pruner, "artifacts", key)
    assert pruner.names("") == {}


def test_a_sender_makes_up_for_what_is_deleted_under_it(node, url, tmp_path, monkeypatch):
    place = build(node("a"))[0].path
    sender, pruner = Objects(url), Objects(url)
    done = before(
        monkeypatch, sender, "write", lambda: entries.delete(pruner, "artifacts", place.name)
    )
    assert entries.send(sender, place) == 1004 and done
    assert build(node("c"), never)[0].path.name == place.name


def test_a_deletion_leaves_no_manifest_without_files(node, url, objects, capsys, monkeypatch):
    """Whoever sends it again meanwhile finds a file there that goes a moment later."""
    place = build(node("a"))[0].path
    sender, pruner = Objects(url), Objects(url)
    last = sorted(pruner.names("files/"))[-1]
    done = before(
        monkeypatch, pruner, "delete", lambda: entries.send(sender, place), lambda n: n == last
    )
    entries.delete(pruner, "artifacts", place.name)
    assert done and not objects.names("manifests/")
    assert node("c").find("artifacts", place.name) is None and capsys.readouterr().err == ""
    assert node("a").find("artifacts", place.name)  # and with that it is there again
    assert build(node("c"), never)[0].path.name == place.name


def test_entries_that_lack_files_there_are_found(node, objects, tmp_path):
    place = build(node("a"))[0].path
    other = made_alone(tmp_path, "b", b"v" * 1000)

    def found(one):
        return entries.incomplete(objects, "artifacts", [one])

    assert found(place) == found(other) == []
    for damage in ("truncated", "missing"):
        damaged(objects, place.name, damage)
        assert found(place) == [place] and found(other) == [other]
        entries.send(objects, place)
        assert found(place) == found(other) == []
    # A maker's files are all there, and the manifest names those of another, which are not.
    (file,) = (name for name in objects.names("files/") if name.endswith("weights.bin"))
    entries.send(objects, other)
    (new,) = (n for n in objects.names("files/") if n.endswith("weights.bin") and n != file)
    objects.delete(new)
    assert found(place) == [place]


def test_what_a_killed_sender_did_not_finish_goes_after_a_week(node, url, objects, tmp_path):
    if url.startswith("s3"):
        pytest.skip("a bucket's own lifecycle rule removes it")
    place = build(node("a"))[0].path
    folder = tmp_path / "mounted"
    (sent,) = folder.glob(f"files/artifacts/{place.name}/*")
    left = [
        temporary(file)
        for file in (
            sent / "weights.bin",
            folder / "files/artifacts/0123/abcd/weights.bin",
            folder / "manifests/artifacts/0123.json",
        )
    ]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    assert entries.left_over(objects, "artifacts") == []  # somebody may be writing it
    old = time.time() - 30 * 86400
    for file in (*left, *objects_in(folder)):
        os.utime(file, (old, old))
    found = entries.left_over(objects, "artifacts")
    assert sorted(folder / name for name in found) == sorted(left)
    for name in found:
        objects.delete(name)
    assert (
        not any(file.exists() for file in left) and not (folder / "files/artifacts/0123").exists()
    )
    assert node("b").find("artifacts", place.name)


def objects_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


SENDER = textwrap.dedent(
    """
    import os, pathlib, signal, sys
    from qsweep.base.objects import Objects
    from qsweep.base.remote_settings import RemoteSettings
    from qsweep.base.store import Store
    upload = Objects.upload
    def upload_and_die(self, file, name):
        upload(self, file, name)
        os.kill(os.getpid(), signal.SIGKILL)
    Objects.upload = upload_and_die
    def make(out):
        for number in range(3):
            (out / f"part{number}").write_bytes(bytes([number]) * 1000)
        return {}
    store = Store(pathlib.Path(sys.argv[2]), RemoteSettings(sys.argv[1]))
    store.build("artifacts", {"what": "test"}, make)
    """
)


def test_a_sender_that_is_killed_leaves_no_entry_and_the_next_goes_on(node, objects, url, tmp_path):
    store = node("a")
    killed = subprocess.run([sys.executable, "-c", SENDER, url, str(store.root)], env=os.environ)
    assert killed.returncode == -9
    assert [name.rpartition("/")[2] for name in objects.names("")] == ["part0"]
    other = node("b")
    assert other.look("artifacts", next((store.root / "artifacts").iterdir()).name) is None
    (entry,) = (store.root / "artifacts").iterdir()
    assert entries.send(objects, entry) == 2000
    assert store.find("artifacts", entry.name)
    assert build(other, never)[0].path.name == entry.name
