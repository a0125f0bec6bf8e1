"""Mixtures that only some trials of a sweep can take: a line each, and the others finish."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.custom_code import custom_mixture
from helpers.miniatures import SIZES, build
from helpers.sweeps import qsweep, rows

QUICK = ["eval.context=32", "eval.noise_floor=false", "calibration.max_seq_len=32", "group_size=32"]
NATIVE = ["quant.backend=native"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("A sentence that is measured, and another one that says the same again.\n" * 40)
    given = [f"corpus.path={path}", "calibration=file", f"calibration.path={path}"]
    return ["corpus=file", *given]


def lines(result):
    assert "Traceback" not in result.stderr + result.stdout
    return [line for line in result.stderr.splitlines() if line.strip()]


# The vocabulary is the tokenizer's.
VOCABULARY = {"vocab_size": 4096}


def test_code_that_comes_with_a_model_runs_where_it_is_trusted(tmp_path, pocket_dir, text):
    path = custom_mixture(
        tmp_path / "model", pocket_dir, experts=96, num_hidden_layers=1, **VOCABULARY
    )
    sweep = ["-m", f"model.path={path}", "quant=rtn,gptq", *NATIVE, *text, *QUICK]
    refused = qsweep(tmp_path / "out", *sweep)
    assert refused.returncode == 2
    (line,) = [line for line in lines(refused) if line.startswith("error")]
    assert "the architecture 'partly' is Python code that comes with the model" in line
    # The advice of that line, as it stands there.
    assert "; model.trust_remote_code=true runs it" in line
    taken = qsweep(tmp_path / "out", *sweep, "model.trust_remote_code=true")
    lines(taken)
    found = {row["method"]: row for row in rows(tmp_path / "out")}
    # Of 96 experts some see none of the few tokens that tell how layers run.
    assert found["gptq"]["status"] == "skipped", found["gptq"]["reason"]
    assert "takes no part for every token" in found["gptq"]["reason"]
    assert "use_experts_implementation" in found["gptq"]["reason"]
    assert found["none"]["status"] == found["rtn"]["status"] == "finished"
    assert float(found["rtn"]["kld"]) > 0 and taken.returncode == 0


def test_stacks_that_nobody_knows_are_skipped_and_the_model_itself_is_measured(
    tmp_path, pocket_dir, text
):
    path = custom_mixture(tmp_path / "model", pocket_dir, stacked=True, **VOCABULARY)
    trusted = [f"model.path={path}", "model.trust_remote_code=true"]
    result = qsweep(tmp_path / "out", "-m", *trusted, "quant=none,rtn,gptq,awq", *text, *QUICK)
    lines(result)
    found = {row["method"]: row for row in rows(tmp_path / "out")}
    assert result.returncode == 0 and found["none"]["status"] == "finished"
    for method in ("rtn", "gptq", "awq"):
        assert found[method]["status"] == "skipped"
        assert "stores experts as model.layers.0.mlp.experts.w_in" in found[method]["reason"]


def test_a_router_that_is_no_number_fails_its_model_alone(tmp_path, pocket_dir, text):
    extra = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    path = build("qwen3_moe", tmp_path / "model", pocket_dir, **SIZES | VOCABULARY | extra)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.gate.weight"][0] = torch.nan
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    result = qsweep(tmp_path / "out", f"model.path={path}", "quant=gptq", *NATIVE, *text, *QUICK)
    assert result.returncode == 1
    lines(result)
    found = {row["method"]: row for row in rows(tmp_path / "out")}
    assert {row["status"] for row in found.values()} == {"failed"}
    assert "they begin in model.layers.1.mlp.gate" in found["none"]["reason"]
