"""Commands on a store that machines share: what lies where, sending, pruning, exporting, the doctor."""

import json
import os
import time
from pathlib import Path

import pytest

from helpers.sweeps import run_here
from qsweep.base.objects import Objects, RemoteError
from qsweep.base.remote_settings import RemoteSettings
from qsweep.base.store import ROOT_VARIABLE, Store
from qsweep.commands.doctor import examine
from qsweep.commands.export import main as export_main
from qsweep.commands.finding import Places
from qsweep.commands.main import main
from qsweep.commands.prune import main as prune_main
from qsweep.commands.trials import find_trial


@pytest.fixture(autouse=True)
def no_root(monkeypatch):
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)


@pytest.fixture
def url(tmp_path):
    (folder := tmp_path / "mounted").mkdir()
    return f"file://{folder}"


def make(out):
    (out / "file").write_bytes(b"x" * 5000)
    return {}


def filled(outputs, url=None, numbers=(0, 1, 2)):
    store = Store(outputs / "store", RemoteSettings(url))
    return [store.build("references", {"n": n}, make)[0].path for n in numbers]


def manifests(url):
    return sorted(p.stem for p in Path(url.removeprefix("file://"), "manifests").rglob("*.json"))


def test_what_is_missing_is_told_and_sent(tmp_path, url, capsys):
    outputs = tmp_path / "out"
    kept = filled(outputs)
    filled(tmp_path / "other", url, [0, 7])
    assert main(["store", "--outputs", str(outputs), "--remote", url]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].split() == "references 3 here 2 there 1 in both".split()
    assert said[2] == f"{url} lacks 2 entries, 0.0000 GB"
    assert len(manifests(url)) == 2
    assert main(["store", "push", "--outputs", str(outputs), "--remote", url]) == 0
    assert capsys.readouterr().out.count("sent references/") == 2
    assert {p.name for p in kept} < set(manifests(url)) and len(manifests(url)) == 4
    assert main(["store", "push", "--outputs", str(outputs), "--remote", url]) == 0
    assert f"{url} has all that is here" in capsys.readouterr().out


def test_what_lost_files_there_is_told_and_repaired(tmp_path, url, capsys):
    outputs = tmp_path / "out"
    (whole, truncated, missing) = filled(outputs, url)
    files = {p.parent.parent.name: p for p in (tmp_path / "mounted/files/references").rglob("file")}
    files[truncated.name].write_bytes(b"x")
    files[missing.name].unlink()
    words = ["--outputs", str(outputs), "--remote", url]
    assert main(["store", *words]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].endswith(" 3 in both, 2 without all files there")
    assert main(["store", "push", *words]) == 0
    sent = capsys.readouterr().out
    assert sent.count("sent references/") == 2 and whole.name not in sent
    other = Store(tmp_path / "other/store", RemoteSettings(url))
    assert all(other.find("references", path.name) for path in (whole, truncated, missing))
    assert capsys.readouterr().err == ""


def test_a_folder_without_a_remote_says_how_to_name_one(tmp_path, url, capsys):
    outputs = tmp_path / "out"
    assert main(["store", "--outputs", str(outputs)]) == 2
    assert "give one with --remote URL" in capsys.readouterr().err
    Store(outputs / "store", RemoteSettings(url)).remember()
    assert main(["store", "--outputs", str(outputs)]) == 0
    assert "has all that is here" in capsys.readouterr().out
    gone = f"file://{tmp_path}/nowhere"
    assert main(["store", "push", "--outputs", str(outputs), "--remote", gone]) == 2
    assert capsys.readouterr().err == f"error: {gone}: is not there; mount it, or make the folder\n"


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_what_is_damaged_here_is_not_sent_and_keeps_nothing_else_back(
    tmp_path, url, capsys, damage
):
    outputs = tmp_path / "out"
    kept = sorted(filled(outputs))
    bad = kept[0] / "file"
    if damage == "missing":
        bad.unlink()
    else:
        bad.write_bytes(b"y" * (5000 if damage == "altered" else 1))
    words = ["store", "push", "--outputs", str(outputs), "--remote", url]
    for lacking in (3, 1):
        assert main(words) == 1
        said = capsys.readouterr()
        assert said.out.count("sent references/") == lacking - 1
        note, error = said.err.splitlines()
        assert note.startswith(f"note: {bad}: ") and f"it is not sent to {url}" in note
        assert error == f"error: 1 of {lacking} could not be sent"
    assert manifests(url) == sorted(path.name for path in kept[1:])


def test_prune_knows_both_sides(tmp_path, url, capsys):
    outputs = tmp_path / "out"
    here = filled(outputs, url, [0, 1])
    there = filled(tmp_path / "other", url, [7])
    kept = Store(tmp_path / "other/store", RemoteSettings(url)).build("measurements", {}, make)[0]
    # A sender that was killed left a file long ago.
    left = tmp_path / "mounted/files/references/0123/abcd/weights"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    old = time.time() - 30 * 86400
    for file in (left, *(tmp_path / "mounted/manifests").rglob("*.json"), *here):
        os.utime(file, (old, old))
    for path in here:
        os.utime(path / "manifest.json", (old, old))
    words = ["--outputs", str(outputs), "--older-than", "10d"]
    assert prune_main([*words, "--remote", url]) == 0
    said = capsys.readouterr().out
    assert said.count("would delete references/") == 2
    assert said.count(f"would delete {url}: references/") == 3
    assert "1 file that no entry names" in said and left.exists()
    # Without --remote nothing goes there, and what went here comes back.
    assert prune_main([*words, "--delete"]) == 0
    assert not any(path.exists() for path in here) and len(manifests(url)) == 4
    assert Store(outputs / "store", RemoteSettings(url)).find("references", here[0].name)
    assert prune_main([*words, "--remote", url, "--delete"]) == 0
    assert "3 GB" not in capsys.readouterr().err
    assert manifests(url) == sorted([kept.path.name, here[0].name])
    assert there[0].exists() and not left.exists()
    assert not (tmp_path / "mounted/files/references" / there[0].name).exists()


def test_prune_refuses_a_remote_that_is_not_there(tmp_path, capsys):
    gone = f"file://{tmp_path}/typo"
    assert prune_main(["--outputs", str(tmp_path), "--remote", gone, "--older-than", "1d"]) == 2
    said = capsys.readouterr()
    assert said.err == f"error: {gone}: is not there; mount it, or make the folder\n"
    assert "entries" not in said.out


def test_an_export_fetches_what_lies_elsewhere(tmp_path, url, capsys):
    first, second = tmp_path / "a", tmp_path / "b"
    words = ["quant=rtn", "bits=8", "corpus=python_docs", "eval.max_windows=2", "tracking=none",
             "sweep=t", f"store.remote={url}"]  # fmt: skip
    for outputs in (first, second):
        done = run_here([*words, f"outputs_dir={outputs}"])
        assert done.returncode == 0, done.stderr
    record = find_trial(second, "best")
    assert not Path(record.artifact.path).exists()
    assert export_main(["best", str(tmp_path / "w"), "--outputs", str(second)]) == 0
    made = Path(find_trial(first, "best").artifact.path)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "w" / name).read_bytes() == (made / name).read_bytes()
    elsewhere = tmp_path / "empty"
    elsewhere.mkdir()
    lost = ["best", str(tmp_path / "v"), "--outputs", str(second), "--remote"]
    Store(second / "store").remove("artifacts", record.artifact.key)
    assert export_main([*lost, f"file://{elsewhere}"]) == 2
    assert "is pruned or damaged" in capsys.readouterr().err
    assert json.loads((second / "store/remote.json").read_text())["remote"] == url


def test_the_doctor_writes_and_reads_back(tmp_path, url, monkeypatch):
    def refuse(*_):
        raise RemoteError("cannot be written")

    def found(outputs, remote=None):
        return next(f for f in examine(Places(outputs, None, remote)) if f.name == "shared store")

    outputs = tmp_path / "out"
    assert found(outputs).status == "missing"
    assert found(outputs, url).status == "ok"
    Store(outputs / "store", RemoteSettings(url)).remember()
    assert found(outputs).detail.startswith(f"{url}: written and read back in ")
    assert not [p for p in (tmp_path / "mounted").rglob("*") if p.is_file()]
    # One that is only read from may well refuse what is written, and is left as it is.
    Store(outputs / "store", RemoteSettings(url, push=False)).remember()
    monkeypatch.setattr(Objects, "write", refuse)
    only_read = found(outputs)
    assert only_read.status == "ok" and "not written to (store.push=false)" in only_read.detail
    assert found(outputs, url).status == "warning"
    broken = found(outputs, f"file://{tmp_path}/nowhere")
    assert broken.status == "warning" and "mount it" in broken.detail
    assert found(outputs, "memory://x").status == "warning"
