"""Sweeps over what others made, as a user runs them: recorded, resumed, exported, pruned."""

import shutil

import pytest

import qsweep
from helpers.artifacts import bad_artifacts, rounded, with_another_piece
from qsweep.base.errors import QsweepError
from qsweep.base.store import Store
from qsweep.commands.export import export
from qsweep.results.holdings import look, remove
from qsweep.results.sources import read_sweep

pytestmark = pytest.mark.usefixtures("warm_jobs")
HOW = {
    "eval.max_windows": 2, "eval.context": 64, "eval.noise_floor": False, "corpus": "file",
    "tracking": "none", "device": "cpu", "quant": "artifact", "n_jobs": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tiny_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    base = tiny_model("llama")
    (root / "text.txt").write_text("A sentence that is measured, and another one.\n" * 200)
    made = rounded(base, root / "models" / "made")
    shutil.copytree(made, root / "models" / "copy")
    other = root / "models" / "other"
    shutil.copytree(made, other)
    with_another_piece(other)
    tuned = root / "models" / "tuned <b>ü"
    shutil.copytree(base, tuned)
    bad = bad_artifacts(root / "bad", made)
    return (
        root,
        base,
        [root / "models" / name for name in ("copy", "made", "other", tuned.name)],
        bad,
    )


@pytest.fixture(scope="module")
def swept(world):
    root, base, paths, bad = world
    given = HOW | {"corpus.path": str(root / "text.txt"), "model.path": str(base)}
    given |= {"outputs_dir": str(root / "out"), "sweep": "t"}
    given["quant.path"] = [*map(str, paths), str(bad["cut"][0]), str(bad["pickled"][0])]
    return given, qsweep.run(given)


def rows(sweep):
    return {row["trial"]: row for _, row in sweep.table().iterrows()}


def test_every_artifact_is_a_row_and_bad_ones_tell_why(world, swept):
    _, sweep = swept
    found = {(r.status, r.name.partition(" ")[2]): r for r in sweep.records.values()}
    status = sorted((status, name.partition(" · ")[2]) for status, name in found)
    assert status == [
        ("failed", "cut"),
        ("finished", ""),
        ("finished", "copy"),
        ("finished", "tuned <b>ü"),
        ("skipped", "other"),
        ("skipped", "pickled"),
    ]
    made = found["finished", "gptq 4-bit g64 · copy"]
    assert made.options["bits"] == 4 and made.artifact.format == "gptq"
    assert made.artifact.path == str(world[2][0]) and 4 < made.artifact.bpw < 5
    assert made.primary.metrics["kld"] > 0
    tuned = found["finished", "unquantized · tuned <b>ü"]
    assert abs(tuned.primary.metrics["kld"]) < 1e-6 and tuned.artifact.bpw == 16
    page = (sweep.directory / "report.html").read_text()
    assert "<b>ü" not in page and "tensor is the model" in page


def test_again_nothing_is_run_and_a_copy_elsewhere_is_known(world, swept):
    given, sweep = swept
    root, _, paths, _ = world
    moved = root / "moved"
    if not moved.exists():
        shutil.copytree(paths[1], moved)
    again = qsweep.run(given | {"quant.path": str(moved), "sweep": "again"})
    (record,) = (r for r in again.records.values() if r.method == "existing")
    assert record.cached and record.artifact.path == str(moved)
    assert record.key in sweep.records


def test_an_overwritten_file_is_another_trial(world, swept):
    given, sweep = swept
    root, base, _, _ = world
    place = root / "overwritten"
    shutil.rmtree(place, ignore_errors=True)
    rounded(base, place, bits=8)
    again = qsweep.run(given | {"quant.path": str(place), "sweep": "again"})
    (record,) = (r for r in again.records.values() if r.method == "existing")
    assert record.finished and record.key not in sweep.records and record.options["bits"] == 8


def test_others_files_are_neither_exported_nor_pruned(world, swept, tmp_path):
    _, sweep = swept
    root, _, paths, _ = world
    record = next(r for r in read_sweep(sweep.directory).records if "copy" in r.name)
    with pytest.raises(QsweepError, match=r"was made by somebody else and lies at .*/copy"):
        export(record, Store(root / "out" / "store"), tmp_path / "out")
    before = sorted(file.read_bytes() for file in paths[0].iterdir())
    holdings = look(root / "out")
    own = [h for h in holdings.entries if h.kind == "artifacts"]
    assert own and all(h.size < 100_000 for h in own)
    for entry in own:
        assert remove(holdings.store, entry)
    assert sorted(file.read_bytes() for file in paths[0].iterdir()) == before
