"""From the store to a directory that can be served, and room made in the store."""

import json
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from helpers.sweeps import run_here
from qsweep.base.errors import QsweepError
from qsweep.base.files import write_json
from qsweep.base.locks import FileLock
from qsweep.base.store import Store
from qsweep.commands.export import export
from qsweep.commands.export import main as export_main
from qsweep.commands.prune import choose, moment
from qsweep.commands.prune import main as prune_main
from qsweep.commands.trials import find_trial
from qsweep.results.holdings import look
from qsweep.results.record import ArtifactFacts
from qsweep.results.record_file import content_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A real sweep: rounding to 3 and 8 bits, at two group sizes."""
    outputs = tmp_path_factory.mktemp("swept")
    done = run_here(
        ["-m", "quant=rtn", "bits=3,8", "group_size=32,128", "corpus=python_docs", "tracking=none",
         "eval.max_windows=2", "sweep=grid", f"outputs_dir={outputs}"],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"report: {outputs}/sweeps/grid/report.html" in done.stdout
    return outputs


@pytest.fixture
def outputs(swept, tmp_path):
    """A copy of its outputs, to be changed at will."""
    shutil.copytree(swept, tmp_path / "outputs")
    return tmp_path / "outputs"


def test_an_export_holds_the_measured_weights_and_a_card_with_the_figures(
    outputs, tmp_path, capsys
):
    out = tmp_path / "winner"
    assert export_main(["rtn 8-bit g128", str(out), "--outputs", str(outputs)]) == 0
    record = find_trial(outputs, "rtn 8-bit g128")
    stored = Store(outputs / "store").path("artifacts", record.artifact.key)
    assert (out / "model.safetensors").read_bytes() == (stored / "model.safetensors").read_bytes()
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= {
        p.name for p in out.iterdir()
    }
    card = (out / "README.md").read_text()
    metrics = record.measurements[0].metrics
    assert f"{metrics['ppl_ratio']:.3f}" in card and "bits=8" in card
    assert record.command.split("outputs_dir")[0].strip() in card.replace("\\", "")
    assert "quick look" in card and "AutoModelForCausalLM" in card
    # rounding to nearest is not among what vllm is known to load
    assert ("vllm serve" in card) == ("vllm" in record.runtimes)
    assert str(out) in capsys.readouterr().out


def test_an_exported_model_gives_the_logits_that_were_measured(outputs, tmp_path, pocket_dir):
    import torch

    from qsweep.formats.artifact import from_content
    from qsweep.formats.dense import load_dense

    record = find_trial(outputs, "rtn 3-bit g32")
    store = Store(outputs / "store")
    entry = store.find("artifacts", record.artifact.key)
    out = export(record, store, tmp_path / "model")
    ids = torch.arange(64).unsqueeze(0)
    logits = [
        load_dense(
            from_content(path, entry.content), pocket_dir, dtype=torch.float32, device="cpu"
        )(ids).logits
        for path in (entry.path, out)
    ]
    assert torch.equal(*logits)


def test_export_refuses_what_it_cannot_do_in_one_line(outputs, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert export_main(["best", str(tmp_path / "full"), "--outputs", str(outputs)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert export_main(["rtn 8-bt g128", str(tmp_path / "x"), "--outputs", str(outputs)]) == 2
    assert "did you mean 'rtn 8-bit g128'" in capsys.readouterr().err
    assert export_main(["best", str(tmp_path / "x"), "--outputs", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "x").exists()


def test_export_never_hands_out_a_damaged_artifact(outputs, tmp_path):
    record = find_trial(outputs, "rtn 8-bit g128")
    store = Store(outputs / "store")
    weights = store.path("artifacts", record.artifact.key) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(QsweepError, match=r"pruned or damaged; to make it again: qsweep"):
        export(record, store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gguf_card_names_the_file_and_brings_a_modelfile(outputs, tmp_path):
    record = find_trial(outputs, "rtn 8-bit g128")
    store = Store(outputs / "store")
    identity = {"made": "by this test"}
    entry, _ = store.build(
        "artifacts", identity, lambda out: (out / "model.gguf").write_bytes(b"GGUF") and {} or {}
    )
    made = ArtifactFacts(key=entry.path.name, format="gguf", runtimes=("llama.cpp",))
    record = replace(record, artifact=made)
    out = export(record, store, tmp_path / "My Model")
    assert (out / "Modelfile").read_text() == "FROM ./model.gguf\n"
    card = (out / "README.md").read_text()
    assert "llama-server -m model.gguf" in card and "ollama create my-model" in card
    assert (out / "tokenizer.json").is_file()
    record = replace(record, artifact=replace(made, runtimes=()))
    card = (export(record, store, tmp_path / "Other") / "README.md").read_text()
    assert "llama-server" not in card and "Nothing serves this file" in card


def keys(outputs):
    return {p.name for p in (outputs / "store/artifacts").iterdir() if not p.name.startswith(".")}


def test_prune_tells_and_deletes_nothing_unless_asked(outputs, capsys):
    before = keys(outputs)
    assert prune_main(["--outputs", str(outputs)]) == 0
    said = capsys.readouterr().out
    assert "sweep grid: 4 artifacts" in said and "would delete" not in said
    assert prune_main(["--outputs", str(outputs), "--off-front", "--older-than", "0d"]) == 0
    assert "--delete frees them" in capsys.readouterr().out
    assert keys(outputs) == before


def test_prune_keeps_the_front_and_all_measurements(outputs):
    beaten = content_of(find_trial(outputs, "rtn 8-bit g32"))
    beaten["measurements"][0]["metrics"]["ppl_ratio"] = 2.0
    write_json(outputs / "sweeps/grid/trials" / f"{beaten['key']}.json", beaten)
    holdings = look(outputs)
    front = {e.key for e in holdings.entries if e.kind == "artifacts" and e.on_front}
    measured = sorted(p.name for p in (outputs / "store/measurements").iterdir())
    assert len(front) == 3 and beaten["artifact"]["key"] not in front
    assert prune_main(["--outputs", str(outputs), "--off-front", "--delete"]) == 0
    assert keys(outputs) == front
    assert sorted(p.name for p in (outputs / "store/measurements").iterdir()) == measured
    from qsweep.commands.report import main as report

    assert report(["grid", "--outputs", str(outputs), "--no-log"]) == 0
    assert "rtn 3-bit g128" in (outputs / "sweeps/grid/report.html").read_text()


def test_prune_leaves_alone_what_is_locked_half_written_or_of_a_running_sweep(outputs, capsys):
    victims = [e for e in look(outputs).entries if e.kind == "artifacts"]
    half = outputs / "store/artifacts" / ".abc.tmp"
    half.mkdir()
    locked = victims[0].key
    before = keys(outputs)
    making = FileLock(outputs / "store/locks/artifacts-abc.lock")
    with making, FileLock(outputs / "store/locks" / f"artifacts-{locked}.lock"):
        assert prune_main(["--outputs", str(outputs), "--older-than", "0d", "--delete"]) == 1
    assert "1 entries are locked" in capsys.readouterr().out
    assert keys(outputs) == {locked} and half.is_dir() and len(before) == 4
    Store(outputs / "store").build("importances", {"text": "some"}, lambda out: {})
    (old,) = (outputs / "store/importances").glob("*/manifest.json")
    os.utime(old, (0, 0))
    with FileLock(outputs / "sweeps/grid/.lock"):
        assert prune_main(["--outputs", str(outputs), "--older-than", "0d", "--delete"]) == 0
    assert keys(outputs) == {locked} and old.is_file()
    assert "a running sweep may be using them" in capsys.readouterr().out


def test_prune_goes_by_date_and_by_sweep(outputs):
    Store(outputs / "store").build("importances", {"text": "some"}, lambda out: {})
    holdings = look(outputs)
    assert choose(holdings, off_front=False, before=datetime(2020, 1, 1, tzinfo=UTC)) == []
    old = choose(holdings, off_front=False, before=datetime.now(UTC))
    assert {entry.kind for entry in old} == {"artifacts", "importances", "references"}
    assert old == sorted(old, key=lambda entry: -entry.size)
    other = outputs / "sweeps" / "other" / "trials"
    shutil.copytree(outputs / "sweeps/grid/trials", other)
    assert choose(look(outputs), off_front=True, before=None, sweeps=["other"]) == []


@pytest.mark.parametrize("text", ["yesterday", "d", "-3d", "2026-13-01"])
def test_a_date_that_is_none_says_what_one_looks_like(text, tmp_path, capsys):
    with pytest.raises(QsweepError, match="neither days"):
        moment(text)
    assert prune_main(["--outputs", str(tmp_path), "--older-than", f"{text}"] if text[0] != "-"
                      else ["--outputs", str(tmp_path), f"--older-than={text}"]) == 2  # fmt: skip
    assert "neither days" in capsys.readouterr().err


def test_an_unknown_sweep_to_prune_names_the_near_one(outputs, capsys):
    assert prune_main(["gird", "--outputs", str(outputs)]) == 2
    assert "did you mean 'grid'?" in capsys.readouterr().err
    record = json.loads(next((outputs / "sweeps/grid/trials").glob("*.json")).read_text())
    assert record["sweep"] == "grid"
