"""A GGUF file that nothing leads back to the checkpoint: llama.cpp's own run of it, or nothing."""

import contextlib
import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("llama_cpp")


from helpers.typed import values  # noqa: E402
from qsweep.base.errors import BackendUnavailable, UnknownLayout  # noqa: E402
from qsweep.base.manifest import seal  # noqa: E402
from qsweep.base.progress import silent
from qsweep.commands.export import export  # noqa: E402
from qsweep.formats.gguf.checkpoint import open_checkpoint  # noqa: E402
from qsweep.formats.gguf.converter import converter_dir  # noqa: E402
from qsweep.formats.gguf.dense import dense_state_dict  # noqa: E402
from qsweep.formats.gguf.layout import derive, stored_tensor  # noqa: E402
from qsweep.formats.gguf.reader import read_gguf  # noqa: E402
from qsweep.formats.gguf.rules import to_json  # noqa: E402
from qsweep.quantizers.conversion.base import unquantized  # noqa: E402
from qsweep.results.answers import answers  # noqa: E402
from qsweep.results.checks import check  # noqa: E402
from qsweep.results.columns.derived import status_word  # noqa: E402
from qsweep.results.columns.table import KLD_NATIVE, TOP1_AGREEMENT_NATIVE  # noqa: E402
from qsweep.results.html.data import SweepData  # noqa: E402
from qsweep.results.html.page import render  # noqa: E402
from qsweep.results.record import Row  # noqa: E402
from qsweep.results.rows import rows, to_csv  # noqa: E402
from qsweep.results.terminal import print_results  # noqa: E402
from qsweep.sweep.artifacts import obtain_artifact, source_model  # noqa: E402
from qsweep.sweep.recording import finished_record  # noqa: E402
from qsweep.sweep.trial import run_trial  # noqa: E402
from qsweep.tracking.mlflow import runs  # noqa: E402

try:
    converter_dir()
except BackendUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)

REASON = "the tensor model.layers.0.mlp.down_proj.weight lies in the file as no known rule explains"


def _reordered(path):
    """Swap two hidden units of a block, one of them scaled up and back: the same function."""
    file = read_gguf(path)
    with path.open("r+b") as raw:
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            info = file.tensors[f"blk.0.{name}.weight"]
            matrix = stored_tensor(file, info.name).clone()
            order = torch.arange(512)
            order[[3, 200]] = order[[200, 3]]
            matrix = matrix[:, order] if name == "ffn_down" else matrix[order]
            if name == "ffn_up":
                matrix[3] *= 2
            if name == "ffn_down":
                matrix[:, 3] /= 2
            raw.seek(info.offset)
            raw.write(matrix.contiguous().view(torch.uint8).numpy().tobytes())


@pytest.fixture
def unexplained(planned, tiny_model):  # noqa: F811
    """Plans of a model whose kept conversion is what a converter with a rule of its own leaves."""
    model = tiny_model("llama")
    store, plan = planned("quant=gguf", model=model)
    (work := store.root / "artifacts" / "work").mkdir(parents=True)
    with unquantized(source_model(plan), work) as base:
        folder, rules = base.path.parent, base.layout.rules
    work.rmdir()
    _reordered(folder / "base.gguf")
    checkpoint, file = open_checkpoint(model), read_gguf(folder / "base.gguf")
    groups = [([name], list(rule.tensors)) for name, rule in rules.items()]
    with pytest.raises(UnknownLayout) as caught:
        derive(checkpoint, file, groups, [], [])
    assert str(caught.value) == REASON
    assert len(caught.value.known.rules) == len(rules) - 2
    content = {
        "tensors": to_json(caught.value.known, checkpoint.infos),
        "added": {},
        "unexplained": REASON,
    }
    identity = json.loads((folder / "manifest.json").read_text())["identity"]
    (folder / "layout.json").write_text(json.dumps(content))
    (folder / "manifest.json").unlink()
    seal(folder, identity, {})
    return lambda *more: planned("quant=gguf", *more, model=model)


def test_what_no_rule_explains_is_skipped_with_advice_that_works(unexplained):
    store, plan = unexplained("bits=8")
    line = (
        rf"gguf of \S+: {REASON}, so no dense model can be made of it; "
        "eval.kld_native=true measures llama.cpp's own run"
    )
    with pytest.raises(UnknownLayout, match=line):
        run_trial(plan, store, silent)
    assert store.find("artifacts", plan.artifact_key) is None
    # The advice: the same artifact, now made.
    _, native = unexplained("bits=8", "eval.kld_native=true")
    assert native.artifact_key == plan.artifact_key
    run_trial(native, store, silent)
    record = finished_record(native, store)
    assert record.finished and record.measurements == ()
    assert 0 < KLD_NATIVE.get(Row(record)) < 0.02
    assert TOP1_AGREEMENT_NATIVE.get(Row(record)) > 0.9
    assert record.runtimes == ("llama.cpp", "ollama")
    # Who does not ask for that run still gets nothing, of the file that is there now.
    with pytest.raises(UnknownLayout, match=line):
        run_trial(plan, store, silent)
    assert finished_record(plan, store) is None
    with pytest.raises(UnknownLayout, match="only llama.cpp itself"):
        dense_state_dict(obtain_artifact(native, store, silent), native.setting.facts.path)


def test_a_row_of_llama_cpps_own_run_says_so_everywhere_and_is_compared_with_none(
    unexplained, tmp_path, capsys
):
    from qsweep.results.markdown import results_markdown

    store, plan = unexplained(
        "bits=4", "eval.kld_native=true", "quant.imatrix=true", "calibration.num_samples=2",
        "calibration.max_seq_len=32",
    )  # fmt: skip
    run_trial(plan.reference(), store, silent)
    run_trial(plan, store, silent)
    record = finished_record(plan, store)
    records = [finished_record(plan.reference(), store), record]
    records = [replace(found, command="qsweep") for found in records]
    record = records[1]
    assert status_word(record) == "llama.cpp's own run only"
    assert answers(records) == []
    assert not [line for line in check(records) if "Q4_K_M" in line]
    assert record.details["imatrix_entries"] == 2 * 7 - 2
    # Two of its linear layers cannot be told, so neither can the bits of all.
    assert record.artifact.bpw is None and record.artifact.bpw_total > 4
    (shown,) = [row for row in rows(records) if not row.record.reference]
    row = values(shown)
    assert row["kld_native"] > 0 and row["no_verdict"] == f"llama.cpp's own run only: {REASON}"
    assert row["expected_low"] is None
    absent = ("ppl", "ppl_ratio", "kld", "top1_agreement", "quality", "quality_per_gb", "verdict")
    assert not any(row.get(name) for name in absent)
    assert to_csv([shown]).count("own run only") == 1
    page = results_markdown("s", records)
    assert "## llama.cpp's own run only" in page and REASON.partition("_")[0] in page
    with contextlib.chdir(tmp_path):
        print_results(records, tmp_path)
    told = " ".join(capsys.readouterr().out.split())
    assert f"llama.cpp's own run only: KLD {record.speed.figures['kld_native']:.4f}"[:-1] in told
    assert "2 finished" in told and "most quality per GB" not in told
    html = render([SweepData("s", "qsweep", records)])
    assert "own run only</h3>" in html and REASON in html
    tags = runs._trial_tags(record)
    assert tags["verdict"] == "none" and tags["no_verdict"] == row["no_verdict"]
    assert dict(runs._figures(record))["kld_native"] == KLD_NATIVE.get(Row(record))
    assert "bpw" not in dict(runs._headline(record))
    card = (export(record, store, tmp_path / "exported") / "README.md").read_text()
    assert "own run only: KLD" in card and "llama-server" in card
