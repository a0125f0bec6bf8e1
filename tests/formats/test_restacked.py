"""Experts that an artifact holds one by one are the stacks that they were, whoever wrote them."""

import json

import pytest
import torch

from qsweep.formats.restacked import restacked
from qsweep.models.architecture import empty_model

SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 3,
    "num_experts_per_tok": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
EXPERTS = "model.layers.0.mlp.experts"


def made(model_type, folder):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(folder)
    return model


def one_by_one(model, split):
    """An artifact's tensors, with rows of the first stack shared out by ``split``."""
    stacks = dict(model.named_parameters())
    turned = model.config.model_type == "gpt_oss"
    state = {name: tensor for name, tensor in stacks.items() if EXPERTS not in name}
    for name, kind in (("gate_up_proj", "weight"), ("gate_up_proj_bias", "bias")):
        for expert, rows in enumerate(stacks.get(f"{EXPERTS}.{name}", ())):
            for part, own in zip(
                ("gate_proj", "up_proj"),
                split(rows.T if turned and rows.ndim > 1 else rows),
                strict=True,
            ):
                state[f"{EXPERTS}.{expert}.{part}.{kind}"] = own
    for expert, rows in enumerate(stacks[f"{EXPERTS}.down_proj"]):
        state[f"{EXPERTS}.{expert}.down_proj.weight"] = rows.T if turned else rows
    for expert, rows in enumerate(stacks.get(f"{EXPERTS}.down_proj_bias", ())):
        state[f"{EXPERTS}.{expert}.down_proj.bias"] = rows
    return state


def alternating(rows):
    return rows[::2], rows[1::2]


def halves(rows):
    return rows.chunk(2)


@pytest.mark.parametrize(
    ("model_type", "maker", "split"),
    [
        ("gpt_oss", "qsweep:1", alternating),
        ("gpt_oss", "gptqmodel:7.6.0", halves),
        # Its checkpoints call these w1, w2 and w3, below another name.
        ("phimoe", "gptqmodel:7.6.0", halves),
    ],
)
def test_an_experts_layers_lie_in_their_stacks_again(model_type, maker, split, tmp_path):
    model = made(model_type, tmp_path / "model")
    (out := tmp_path / "out").mkdir()
    settings = {"quantization_config": {"meta": {"quantizer": [maker]}}}
    (out / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    state = one_by_one(model, split)
    found = restacked(state, empty_model(model.config), tmp_path / "model", out)
    expected = dict(model.named_parameters())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name][...], tensor), name
