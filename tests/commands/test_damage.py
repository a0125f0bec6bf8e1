"""Whole sweeps over a folder of outputs that somebody, or a disk, has damaged."""

import csv
import itertools
import json
import shutil
import subprocess

import pytest

from helpers.damage import JUNK, flip, with_text_for_numbers
from helpers.sweeps import ROOT, command
from qsweep.base.manifest import MANIFEST

GRID = [
    "-m", "quant=none,rtn", "bits=3,8", "corpus=file", "eval.tasks=[syllogism]", "eval.limit=4",
    "eval.max_windows=2", "eval.context=64",
]  # fmt: skip
# What depends on when, where and how quickly.
OF_THE_RUN = {
    "quantize_s", "evaluate_s", "shared_s", "peak_memory_gb", "peak_host_memory_gb", "artifact", "log",
}  # fmt: skip


def run(outputs, *more):
    text = outputs.parent / "text.txt"
    text.write_text("Words that are measured, one after the other. " * 200)
    grid = [o for o in GRID if not any(o.split("=")[0] == m.split("=")[0] for m in more)]
    result = subprocess.run(
        command(outputs, *grid, f"corpus.path={text}", *more),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=280,
    )
    assert "Traceback" not in result.stdout + result.stderr, result.stderr
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def figures(outputs):
    with (outputs / "sweeps" / "t" / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in OF_THE_RUN} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("damage") / "out"
    run(outputs)
    assert {row["status"] for row in figures(outputs)} == {"finished"}
    return outputs


@pytest.fixture
def outputs(finished, tmp_path):
    copy = tmp_path / "damage" / "out"
    shutil.copytree(finished, copy)
    return copy


def json_files(outputs):
    return sorted(p for p in outputs.rglob("*.json") if p.is_file())


def spoil(file, kind):
    if kind == "numbers as text":
        file.write_text(json.dumps(with_text_for_numbers(json.loads(file.read_text()))))
    elif kind == "version 1, numbers as text":
        content = with_text_for_numbers(json.loads(file.read_text()))
        if isinstance(content, dict) and content.pop("seal", None):
            content |= {"version": 1}
        file.write_text(json.dumps(content))
    elif kind == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(JUNK[kind])


KINDS = [*JUNK, "numbers as text", "version 1, numbers as text", "folder"]


@pytest.mark.slow
def test_whatever_any_file_holds_the_next_start_comes_to_the_same(finished, outputs):
    files = json_files(outputs)
    assert len({file.name for file in files}) > 6
    for file, kind in zip(files, itertools.cycle(KINDS), strict=False):
        spoil(file, kind)
    result = run(outputs)
    assert "counts as absent" in result.stderr
    assert figures(outputs) == figures(finished)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_for_every_kind_of_damage_in_every_file(kind, finished, outputs):
    for file in json_files(outputs):
        spoil(file, kind)
    run(outputs)
    assert figures(outputs) == figures(finished)


def test_no_figure_is_calculated_with_what_is_not_what_it_was(finished, outputs):
    store = outputs / "store"
    first, second = sorted(p for p in (store / "artifacts").iterdir() if p.name[0] != ".")
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    for kind, pattern in (
        ("references", "*.safetensors"),
        ("texts", "documents.json"),
        ("tasks", "result.json"),
        ("measurements", "arrays.safetensors"),
    ):
        files = sorted((store / kind).glob(f"*/{pattern}"))
        assert files
        for file in files:
            flip(file)
    # Measured anew, from the store's artifacts and against its reference.
    for manifest in (store / "measurements").glob(f"*/{MANIFEST}"):
        content = json.loads(manifest.read_text())
        content["content"]["metrics"]["ppl"] = 1.0
        manifest.write_text(json.dumps(content))
    run(outputs)
    assert figures(outputs) == figures(finished)


def test_a_flipped_reference_is_made_again_for_the_next_comparison(finished, outputs, tmp_path):
    for file in (outputs / "store" / "references").glob("*/features-*"):
        flip(file)
    run(outputs, "bits=3,4,8")
    fresh = tmp_path / "fresh" / "out"
    fresh.parent.mkdir()
    run(fresh, "bits=3,4,8")
    assert figures(outputs) == figures(fresh)
