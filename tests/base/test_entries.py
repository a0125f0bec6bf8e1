"""Entries of the store that are not what their key says, by whatever hand."""

import hashlib
import json
import os
import shutil

import pytest

from helpers.damage import JUNK, flip
from qsweep.base.errors import ArtifactCorrupt
from qsweep.base.file_hashes import file_hash
from qsweep.base.keys import key_of
from qsweep.base.manifest import MANIFEST, open_entry
from qsweep.base.store import Store

ONE, OTHER = {"what": "one"}, {"what": "other"}
METRICS = {"ppl": 5.0, "verdict": "yes"}


def make(out):
    (out / "weights.bin").write_bytes(b"w" * 1000)
    (out / "measurement.json").write_text(json.dumps({"metrics": METRICS, "facts": {}}))
    return {"metrics": METRICS, "facts": {}, "evaluate_s": 1.0}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def entry(store):
    return store.build("measurements", ONE, make)[0].path


def edit_manifest(path, change):
    file = path / MANIFEST
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def as_version_1(path):
    """The manifest as it was written before there were seals."""

    def strip(manifest):
        manifest["version"] = 1
        del manifest["seal"], manifest["kind"]

    edit_manifest(path, strip)


def swap(path, store):
    other = store.build("measurements", OTHER, make)[0].path
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


def copy_manifest(path, store):
    other = store.build("measurements", OTHER, make)[0].path
    shutil.copy2(other / MANIFEST, path / MANIFEST)


def link_to_another(path, store):
    other = store.build("measurements", OTHER, make)[0].path
    shutil.rmtree(path)
    path.symlink_to(other)


def metric(path, store):
    edit_manifest(path, lambda m: m["content"]["metrics"].update(ppl=1.0))


def metric_as_text(path, store):
    edit_manifest(path, lambda m: m["content"]["metrics"].update(ppl="5.0"))


def no_seal(path, store):
    edit_manifest(path, lambda m: m.pop("seal"))


def another_identity(path, store):
    edit_manifest(path, lambda m: m.update(identity=OTHER))


def pretended_version_1(path, store):
    as_version_1(path)
    edit_manifest(path, lambda m: m["content"]["metrics"].update(ppl=1.0))


def extra_file(path, store):
    (path / "model-2.safetensors").write_bytes(b"")


def extra_link(path, store):
    (path / "more").symlink_to(path)


def stamps_left_out(path, store):
    edit_manifest(path, lambda m: m["files"].clear())


def edited_file_stamped_again(path, store):
    flip(path / "weights.bin")
    digest = hashlib.sha256((path / "weights.bin").read_bytes()).hexdigest()
    edit_manifest(path, lambda m: m["files"]["weights.bin"].update(sha256=digest))


SEEN_AT_ONCE = [
    swap, copy_manifest, link_to_another, metric, metric_as_text, no_seal, another_identity,
    pretended_version_1, extra_file, extra_link, stamps_left_out, edited_file_stamped_again,
]  # fmt: skip


@pytest.mark.parametrize("damage", SEEN_AT_ONCE, ids=lambda damage: damage.__name__)
def test_what_is_not_the_entry_of_its_place_is_absent_and_made_again(damage, store, entry, capsys):
    damage(entry, store)
    fresh = Store(store.root)
    assert fresh.find("measurements", entry.name) is None
    said = capsys.readouterr().err
    assert entry.name in said and "counts as absent" in said and said.count("\n") == 1
    assert fresh.find("measurements", entry.name) is None
    assert capsys.readouterr().err == ""  # once is enough
    again, made = fresh.build("measurements", ONE, make)
    assert made and again.content["metrics"] == METRICS
    assert not again.path.is_symlink()


def test_an_entry_among_those_of_another_kind_is_none_of_theirs(store, entry):
    entry.parent.rename(store.root / "tasks")
    with pytest.raises(ArtifactCorrupt, match="an entry of measurements"):
        open_entry(store.root / "tasks" / entry.name)


@pytest.mark.parametrize("old", [False, True], ids=["sealed", "version 1"])
@pytest.mark.parametrize("replace", [flip, "link"], ids=["flipped", "linked"])
def test_a_content_that_keeps_size_and_time_is_found_where_it_is_used(old, replace, store, entry):
    if old:
        as_version_1(entry)
    file = entry / "weights.bin"
    if replace == "link":
        stat = file.stat()
        elsewhere = store.root / "elsewhere"
        elsewhere.write_bytes(b"v" * 1000)
        os.utime(elsewhere, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        file.unlink()
        file.symlink_to(elsewhere)
    else:
        flip(file)
    assert Store(store.root).find("measurements", entry.name, full=True) is None
    with pytest.raises(ArtifactCorrupt, match="gone or damaged"):
        Store(store.root).require("measurements", entry.name)
    rebuilt, made = Store(store.root).build("measurements", ONE, make)
    assert made and (rebuilt.path / "weights.bin").read_bytes() == b"w" * 1000


def test_a_flip_after_the_first_use_is_found_by_the_same_process(store, entry):
    assert store.find("measurements", entry.name, full=True)
    flip(entry / "weights.bin")
    assert store.find("measurements", entry.name, full=True) is None


def test_an_entry_moved_to_another_disk_behind_a_link_is_still_one(store, entry, tmp_path):
    shutil.move(entry, tmp_path / "disk")
    entry.symlink_to(tmp_path / "disk")
    assert store.find("measurements", entry.name, full=True)
    store.remove("measurements", entry.name)
    assert (tmp_path / "disk" / MANIFEST).is_file()


def test_an_entry_of_version_1_is_a_hit_and_is_sealed_from_then_on(store, entry):
    as_version_1(entry)
    os.utime(entry / MANIFEST, (1e9, 1e9))
    found, made = Store(store.root).build("measurements", ONE, lambda out: pytest.fail("made"))
    assert not made and found.content["metrics"] == METRICS
    assert "seal" in json.loads((entry / MANIFEST).read_text())
    assert (entry / MANIFEST).stat().st_mtime == 1e9  # what prune goes by
    metric(entry, store)
    assert Store(store.root).find("measurements", entry.name) is None


def test_looking_seals_an_entry_of_version_1_as_well(store, entry):
    as_version_1(entry)
    assert store.find("measurements", entry.name)
    assert open_entry(entry).sealed


def test_a_seal_covers_what_json_changes_on_its_way(store):
    odd = {"tuple": (1, 2), "names": {10: "b", 2: "a"}, "odd": float("inf"), "ä": "\udce4"}
    entry, _ = store.build("timings", odd, lambda out: {"found": odd})
    assert entry.path.name == key_of(odd)
    assert store.find("timings", key_of(odd)).content["found"]["tuple"] == [1, 2]


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_a_manifest_may_hold_anything(junk, store, entry):
    (entry / MANIFEST).write_bytes(junk)
    assert store.find("measurements", entry.name) is None
    assert store.build("measurements", ONE, make)[1]


def test_a_manifest_that_is_a_pipe_or_a_folder_is_none(store, entry):
    for replace in (os.mkfifo, os.mkdir):
        (entry / MANIFEST).unlink()
        replace(entry / MANIFEST)
        assert store.find("measurements", entry.name) is None
        assert store.build("measurements", ONE, make)[1]


def old_content(content):
    def change(manifest):
        manifest["content"] = content

    return change


@pytest.mark.parametrize(
    "content",
    [[], "x", None, {}, {"metrics": METRICS}, {"metrics": [], "facts": {}, "evaluate_s": 1},
     {"metrics": METRICS, "facts": {}, "evaluate_s": "1"},
     {"metrics": {"ppl": "5"}, "facts": {}, "evaluate_s": 1},
     {"metrics": METRICS, "facts": {}, "evaluate_s": 1, "peak_memory_gb": {}},
     {"metrics": METRICS, "facts": {}, "evaluate_s": True}],
)  # fmt: skip
def test_a_manifest_without_a_seal_is_checked_field_by_field(content, store, entry):
    as_version_1(entry)
    edit_manifest(entry, old_content(content))
    assert store.find("measurements", entry.name) is None


# What is remembered of models' files


def test_a_model_that_is_flipped_and_set_back_in_time_is_another(store, tmp_path):
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"w" * 1000)
    before = file_hash(store, model)
    flip(model)
    assert file_hash(store, model) == hashlib.sha256(model.read_bytes()).hexdigest() != before


@pytest.mark.parametrize(
    "junk", [b"", b"x", b"\xff", b"0" * 64, b"0" * 64 + b" " + b"0" * 16, None], ids=repr
)
def test_a_remembered_hash_that_is_damaged_is_made_again(junk, store, tmp_path):
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"w" * 1000)
    right = file_hash(store, model)
    (cached,) = (store.root / "hashes").iterdir()
    if junk is None:
        cached.unlink()
        cached.mkdir()
    else:
        cached.write_bytes(junk)
    assert file_hash(store, model) == right


def test_remembered_hashes_in_each_others_place_are_not_believed(store, tmp_path):
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_text(file.name)
    right = [file_hash(store, file) for file in files]
    first, second = (store.root / "hashes").iterdir()
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    assert [file_hash(store, file) for file in files] == right
