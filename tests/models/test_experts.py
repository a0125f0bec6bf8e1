"""Experts as linear layers with a number: where they lie, what goes into them, what they are called."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models.test_architectures import SIZES, build
from qsweep.models.experts import (
    ExpertLinear,
    attach_experts,
    attached,
    expert_count,
    parts_of,
    run_experts,
)
from qsweep.models.facts import read_facts, read_tensors
from qsweep.models.spelling import spelling_of
from qsweep.models.stacks import stacked_linears, unread_experts

MIXTURE = SIZES | {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
}
# Concatenated, interleaved and transposed with biases, without a gate, laid out expert by expert.
FAMILIES = {
    "qwen3_moe": {},
    "gpt_oss": {"layer_types": ["full_attention"] * 2},
    "nemotron_h": {
        "layers_block_type": ["attention", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
        "moe_shared_expert_intermediate_size": 96,
    },
    "llama4_text": {},
}


def make(family):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **MIXTURE | FAMILIES.get(family, {}))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False).copy_(torch.randn(parameter.shape) * 0.1)
    attach_experts(model)
    return model


def holder_of(model):
    return next(attached(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_experts_layers_compute_what_its_module_does(family):
    model = make(family)
    ids = torch.randint(5, 500, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits
    for everything in (False, True):
        for _, module in attached(model):
            module.forward = run_experts(module, lambda *seen: None, all_tokens=everything)
        with torch.no_grad():
            assert torch.allclose(model(ids).logits, expected, atol=1e-5)
        for _, module in attached(model):
            del module.forward


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_a_stack_is_in_one_layer(family):
    _, module = holder_of(make(family))
    stacks = {part.parameter for part in parts_of(module)}
    for name in stacks:
        getattr(module, name).data.zero_()
    layers = [layer for layer in module.modules() if isinstance(layer, ExpertLinear)]
    assert len(layers) == expert_count(module) * len(parts_of(module))
    for layer in layers:
        layer.weight.add_(1)
    for name in stacks:
        assert torch.equal(getattr(module, name), torch.ones_like(getattr(module, name)))


def test_a_copy_has_layers_of_its_own():
    _, module = holder_of(make("qwen3_moe"))
    other = copy.deepcopy(module)
    other.get_submodule("2.up_proj").weight.zero_()
    assert not other.gate_up_proj[2, 96:].any()
    assert module.gate_up_proj[2, 96:].any()


def test_attached_layers_are_no_parameters():
    model = make("qwen3_moe")
    assert not any(".0.gate_proj" in name for name in model.state_dict() if "experts" in name)


def test_each_expert_sees_the_tokens_that_are_sent_to_it():
    _, module = holder_of(make("qwen3_moe"))
    hidden = torch.randn(5, 64)
    index = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 1], [1, 0]])
    weights = torch.rand(5, 2)
    seen, counts = {}, {}

    def look(name, inputs, tokens, own, routed):
        seen[name] = inputs, tokens, own
        counts[name] = routed

    with torch.no_grad():
        run_experts(module, look)(hidden, index, weights)
    inputs, tokens, own = seen["0.gate_proj"]
    assert tokens.tolist() == [0, 2, 4]
    assert torch.equal(inputs, hidden[tokens])
    assert torch.equal(own, torch.stack([weights[0, 0], weights[2, 0], weights[4, 1]]))
    assert seen["0.up_proj"][0] is inputs
    assert seen["3.gate_proj"][0].shape == (0, 64)
    assert seen["2.down_proj"][0].shape == (3, 96)
    with torch.no_grad():
        run_experts(module, look, all_tokens=True)(hidden, index, weights)
    assert torch.equal(seen["3.gate_proj"][0], hidden)
    assert seen["3.down_proj"][0].shape == (5, 96)
    # What is an expert's own is told all the same.
    assert [counts[f"{expert}.down_proj"] for expert in range(4)] == [3, 4, 3, 0]


def test_experts_that_get_copies_of_their_own_are_shown_all_tokens_too():
    _, module = holder_of(make("llama4_text"))
    tokens, seen, counts = torch.randn(5, 64), {}, {}
    scores = torch.tensor([[0.5, 0], [0, 0.25], [0.5, 0.25], [0, 1], [0, 1]]).T
    states = torch.zeros(4, 5, 64)
    states[:2] = tokens * scores[..., None]

    def look(name, inputs, tokens, own, routed):
        seen[name], counts[name] = inputs, routed

    with torch.no_grad():
        run_experts(module, look, all_tokens=True)(states.view(-1, 64))
    assert counts["0.gate_proj"] == 2 and counts["1.gate_proj"] == 4 and counts["3.gate_proj"] == 0
    # An expert's own as they come to it, others as they come to theirs.
    wanted = tokens * torch.tensor([0.5, 0.25, 0.5, 1, 1])[:, None]
    assert torch.equal(seen["0.up_proj"], wanted)
    assert seen["3.down_proj"].shape[0] == 5 and bool(seen["3.gate_proj"].any(-1).all())


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("qwen3_moe", "model.layers.1.mlp.experts.3.up_proj"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w3"),
        ("gpt_oss", "model.layers.1.mlp.experts.3.up_proj"),
        ("granitemoe", "model.layers.1.block_sparse_moe.experts.3.up_proj"),
    ],
)
def test_layers_are_called_as_the_checkpoint_calls_them(family, expected, tmp_path, pocket_dir):
    path = build(family, tmp_path / "model", pocket_dir, **MIXTURE | FAMILIES.get(family, {}))
    model = AutoModelForCausalLM.from_pretrained(path)
    attach_experts(model)
    spelling = spelling_of(model, read_tensors(path))
    names = [
        f"{name}.{expert}.{part.name}"
        for name, module in attached(model)
        for part in parts_of(module)
        for expert in range(expert_count(module))
    ]
    spelt = [spelling.layer(name) for name in names]
    assert expected in spelt
    facts = read_facts(path, "mini")
    assert set(spelt) == {name for name in facts.linears if ".experts." in name}
    assert not facts.unread_experts
    plain = {n for n, t in read_tensors(path).items() if len(t.shape) < 3 and "experts" not in n}
    assert {spelling.tensor(name) for name in model.state_dict()} >= plain


@pytest.mark.parametrize(
    ("first", "last", "shape"),
    [((4, 96, 64), (4, 64, 48), (48, 64)), ((4, 64, 96), (4, 48, 64), (48, 64)),
     ((4, 128, 64), (4, 64, 64), (64, 64)), ((4, 64, 128), (4, 64, 64), (64, 64)),
     ((4, 64, 64), (4, 32, 64), (32, 64)), ((4, 64, 64), (4, 64, 32), (32, 64))],
)  # fmt: skip
def test_shapes_tell_which_way_round_a_stack_lies(first, last, shape):
    tensors = {"layers.0.experts.gate_up_proj": first, "layers.0.experts.down_proj": last}
    linears = stacked_linears(tensors)
    assert len(linears) == 12
    assert linears["layers.0.experts.3.up_proj"] == shape
    assert linears["layers.0.experts.3.down_proj"] == shape[::-1]
    assert not unread_experts(tensors, {4})


@pytest.mark.parametrize(
    "tensors",
    [
        {"blocks.0.ffn.experts.mlp.w1": (256, 64)},
        {"layers.0.mlp.input_linear.weight": (4, 96, 64)},
        {"layers.0.mlp.experts.gate_up_proj": (4, 96, 64), "layers.0.mlp.experts.down_proj": (4, 64, 50)},
    ],
)  # fmt: skip
def test_experts_in_no_known_layout_are_named(tensors):
    assert unread_experts(tensors, {4}) == list(tensors)
    assert not stacked_linears(tensors)


def test_stacks_of_each_layer_by_itself():
    tensors = {
        f"layers.0.moe.{name}.weight": shape
        for name, shape in {
            "gate_proj": (4, 48, 64),
            "up_proj": (4, 48, 64),
            "down_proj": (4, 64, 48),
        }.items()
    }
    found = stacked_linears(tensors)
    assert found["layers.0.moe.experts.3.gate_proj"] == (48, 64)
    assert found["layers.0.moe.experts.3.down_proj"] == (64, 48)
    assert len(found) == 12
    del tensors["layers.0.moe.gate_proj.weight"]
    assert len(stacked_linears(tensors)) == 8


def test_what_is_no_expert_is_not_taken_for_one():
    tensors = {
        "layers.0.conv.weight": (64, 1, 4),
        "layers.0.mlp.experts.gate_up_proj_bias": (4, 192),
        "layers.0.rg_lru.input_gate_weight": (8, 16, 16),
        "layers.0.mlp.experts.0.up_proj.weight": (96, 64),
    }
    assert not unread_experts(tensors, {4})
