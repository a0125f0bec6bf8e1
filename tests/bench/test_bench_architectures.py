"""bench/architectures.py: one architecture of each structure, and that its checks can fail."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from architecture_parts import independent
from architecture_parts.cells import check
from architecture_parts.page import kind, page
from miniatures import CAUSAL, IMAGE_TEXT, build, miniature
from qsweep.formats.awq import pack_awq
from qsweep.formats.gptq import pack_gptq
from qsweep.formats.packing import QuantizedMatrix

PLAIN = ("none", "rtn", "gptq", "awq")
# What each is here for, and what works on it.
STRUCTURES = {
    "llama": ("the plain one", CAUSAL, PLAIN),
    "gemma2": ("norms before and behind, soft-caps", CAUSAL, PLAIN),
    "cohere": ("a parallel block with one norm", CAUSAL, PLAIN),
    "gpt_neox": ("fused queries, keys and values, with biases", CAUSAL, PLAIN),
    "gpt2": ("transposed weights", CAUSAL, PLAIN[:3]),
    "mamba": ("a state space alone", CAUSAL, PLAIN),
    "falcon_h1": ("a state space beside attention, multipliers", CAUSAL, PLAIN),
    "qwen3_5_text": ("gated delta nets", CAUSAL, PLAIN),
    "lfm2": ("short convolutions", CAUSAL, PLAIN),
    "gemma4_text": ("inputs per layer; experts beside a dense part", CAUSAL, PLAIN),
    "zamba2": ("a layer that is shared", CAUSAL, PLAIN),
    "blt": ("several stacks", CAUSAL, PLAIN),
    "zaya": ("a layer that runs twice", CAUSAL, PLAIN),
    "step3p7": ("experts without transformers' mark, stacks one by one", IMAGE_TEXT, PLAIN),
    "llama4": ("experts that are given copies of all tokens", IMAGE_TEXT, PLAIN),
    "mixtral": ("experts", CAUSAL, PLAIN),
    "gpt_oss": (
        "experts that lie transposed and interleaved, with biases; sinks",
        CAUSAL,
        PLAIN,
    ),
    "deepseek_v3": ("latent attention, shared experts, a dense layer first", CAUSAL, PLAIN),
    "qwen3_next": ("gated delta nets with experts, a gated shared expert", CAUSAL, PLAIN),
    "granitemoehybrid": ("a state space with experts", CAUSAL, PLAIN),
    "gemma3": ("a text part beside a vision tower", IMAGE_TEXT, PLAIN),
}


@pytest.mark.parametrize("model_type", STRUCTURES)
def test_each_structure_is_right(model_type, tmp_path):
    _, auto, methods = STRUCTURES[model_type]
    path = miniature(model_type, tmp_path / "model", auto)
    for method in methods:
        cell = check(model_type, method, path, auto)
        assert (cell.state, cell.reason) == ("right", ""), method


def test_every_layer_of_the_table_is_there_and_nothing_is_flat():
    model = build("qwen3_next")
    kinds = set(model.config.layer_types)
    assert kinds == {"linear_attention", "full_attention"}
    assert model.config.num_hidden_layers == 2
    for name, tensor in model.state_dict().items():
        assert tensor.std() > 0, name


def grid(outputs=32, inputs=64, group_size=32):
    generator = torch.Generator().manual_seed(0)
    groups = inputs // group_size
    return QuantizedMatrix(
        codes=torch.randint(0, 16, (outputs, inputs), generator=generator).to(torch.uint8),
        zeros=torch.randint(1, 16, (outputs, groups), generator=generator).to(torch.uint8),
        scales=(torch.rand(outputs, groups, generator=generator) + 0.1).half(),
    )


@pytest.mark.parametrize(
    ("method", "settings", "packed"),
    [
        ("gptq", {"checkpoint_format": "gptq"}, lambda m: pack_gptq(m, 4, 1)),
        ("gptq", {"checkpoint_format": "gptq_v2"}, lambda m: pack_gptq(m, 4, 2)),
        ("awq", {}, lambda m: pack_awq(m, 4)),
    ],
)
def test_the_independent_reading_is_what_was_packed(method, settings, packed, tmp_path):
    matrix = grid()
    save_file({f"a.{n}": t for n, t in packed(matrix).items()}, tmp_path / "model.safetensors")
    content = {"quantization_config": {"quant_method": method, **settings}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    ((name, dense),) = independent.unpacked(tmp_path)
    assert name == "a"
    assert np.array_equal(dense, matrix.dense(torch.float32).numpy())


TENSORS = {
    "model.layers.0.mlp.experts.gate_up_proj": ((4, 128, 64), "BF16"),
    "model.layers.0.mlp.experts.1.up_proj.weight": ((64, 64), "BF16"),
    "model.layers.0.mlp.experts.1.down_proj.weight": ((64, 64), "BF16"),
    # It hands tokens on, and is never asked.
    "model.layers.0.mlp.experts.2.up_proj.weight": ((64, 64), "BF16"),
    "model.layers.0.mlp.gate.weight": ((64, 64), "BF16"),
    "model.layers.0.self_attn.q_proj.weight": ((64, 64), "BF16"),
    "model.layers.0.linear_attn.conv1d.weight": ((64, 1, 4), "BF16"),
    "model.layers.0.linear_attn.in_proj_b.weight": ((4, 64), "BF16"),
    "model.layers.0.input_layernorm.weight": ((64,), "BF16"),
    "model.embed_tokens.weight": ((512, 64), "BF16"),
    "model.vision_tower.layers.0.mlp.fc1.weight": ((64, 64), "BF16"),
}


def test_what_stays_in_16_bits_is_found():
    wanted = independent.to_quantize(TENSORS)
    assert {name.split(".", 3)[3] for name in wanted} == {
        "mlp.experts.gate_up_proj",
        "mlp.experts.1.up_proj.weight",
        "mlp.experts.1.down_proj.weight",
        "self_attn.q_proj.weight",
    }
    found = independent.tensors_left(TENSORS, TENSORS, {"model.layers.0.self_attn.q_proj"})
    assert found["share_left"] == 1
    assert len(found["experts_left"]) == 3
    assert not any("q_proj" in name for name in found["left"])
    packed = {name: ((1,), "I32") for name in TENSORS}
    assert independent.tensors_left(TENSORS, packed, set())["share_left"] == 0


def test_layers_that_changed_places_are_found(tmp_path):
    path = miniature("llama", tmp_path / "model")
    swapped = tmp_path / "swapped"
    shutil.copytree(path, swapped)
    weights = load_file(path / "model.safetensors")
    one, other = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    weights[one], weights[other] = weights[other], weights[one]
    save_file(weights, swapped / "model.safetensors", metadata={"format": "pt"})
    from transformers import AutoModelForCausalLM

    source, model = (AutoModelForCausalLM.from_pretrained(p) for p in (path, swapped))
    assert independent.misplaced(source, source) == []
    assert independent.misplaced(source, model) == [one, other]


def test_a_reason_is_one_kind_whichever_layer_and_figure_it_names():
    first = "model.layers.0.mlp.up_proj: 40 rows, of LlamaForCausalLM"
    second = "transformer.h.11.mlp.c_fc: 1280 rows, of GPT2LMHeadModel"
    assert kind(first) == kind(second)
    assert kind(first) != kind("model.layers.0.mlp.up_proj: 40 columns, of LlamaForCausalLM")


def test_the_page_numbers_reasons_by_how_many_have_them():
    def cell(name, method, state, reason=""):
        return {"architecture": name, "method": method, "state": state, "reason": reason}

    rows = [
        cell("a", "none", "right"),
        cell("a", "rtn", "wrong", "once"),
        cell("a", "gptq", "skipped", "a mixture"),
        cell("b", "gptq", "skipped", "a mixture"),
    ]
    text = page({"rows": rows, "versions": {"torch": "2"}})
    assert "| a | ✓ | ✗ 2 | 1 |  |  |" in text
    assert "1. a mixture (2×)" in text
    assert "2. once (1×)" in text
