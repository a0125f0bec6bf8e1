"""How much of the calibration text experts are sent, and what it is to show each all of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.test_architectures import build
from models.test_experts import MIXTURE
from qsweep.base.progress import silent
from qsweep.models.facts import read_facts
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.native.grid import run
from qsweep.quantizers.native.stats import InputStats, lend_ranges
from qsweep.text.calibration import CalibrationTokens

SAMPLES = torch.randint(5, 500, (3, 40), generator=torch.Generator().manual_seed(0)).tolist()
# Of another length, so that the text runs in two chunks.
SAMPLES.append(SAMPLES[0][:30])
TOKENS = sum(map(len, SAMPLES))
GRID = [NativeGPTQ(group_size=32), NativeAWQ(group_size=32)]


@pytest.fixture(scope="module")
def path(tmp_path_factory, pocket_dir):
    return build("qwen3_moe", tmp_path_factory.mktemp("made") / "moe", pocket_dir, **MIXTURE)


@pytest.fixture(scope="module")
def passes(path, tmp_path_factory):
    """By whether experts are shown all tokens: what came of a pass with an importance matrix."""
    found = {}
    for everything in (False, True):
        chosen = GRID[:1] if everything else GRID
        pairs = [(quantizer, tmp_path_factory.mktemp("out")) for quantizer in chosen]
        text = CalibrationTokens(SAMPLES, all_experts=everything)
        model = SourceModel(read_facts(path, "moe"), "cpu")
        found[everything] = run(model, text, pairs, silent, importance=True)
    return found


def chosen(path):
    """By layer, how many tokens the routers send to each expert, run by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    counts = torch.zeros(2, 4, dtype=torch.int64)
    for sample in SAMPLES:
        with torch.no_grad():
            logits = model(torch.tensor([sample]), output_router_logits=True).router_logits
        for layer, own in enumerate(logits):
            counts[layer] += own.topk(2).indices.flatten().bincount(minlength=4)
    return counts


@pytest.mark.parametrize("everything", [False, True])
def test_an_expert_was_sent_what_its_router_chose_it_for(passes, path, everything):
    expected = chosen(path)
    told = [passes[everything].coverage, *(a.details for a in passes[everything].artifacts)]
    for details in told:
        coverage = details["expert_coverage"]
        assert coverage["all_tokens"] is everything
        assert list(coverage["modules"]) == [f"model.layers.{n}.mlp.experts" for n in range(2)]
        for module, wanted in zip(coverage["modules"].values(), expected, strict=True):
            assert module["width"] == 96 and sum(module["tokens"]) == 2 * TOKENS
            # In bfloat16, and behind quantized layers, a few tokens go elsewhere.
            moved = (torch.tensor(module["tokens"]) - wanted).abs().sum()
            assert moved <= 0.1 * TOKENS


def test_all_experts_are_shown_the_same_and_the_model_computes_what_it_did(passes):
    routed, everything = passes[False].importance, passes[True].importance
    assert routed.keys() == everything.keys()
    first = [f"model.layers.0.mlp.experts.{expert}.gate_proj" for expert in range(4)]
    for name in first[1:]:
        assert torch.equal(everything[name], everything[first[0]])
        assert not torch.equal(routed[name], routed[first[0]])
    # The next layer's attention sees the same.
    attention = "model.layers.1.self_attn.q_proj"
    assert torch.equal(routed[attention], everything[attention])


def test_an_expert_without_tokens_reaches_as_far_as_those_beside_it():
    inputs = [torch.tensor([[1.0, -3.0]]), torch.tensor([[2.0, 1.0]]), torch.zeros(0, 2)]
    stats = [InputStats("expert", ranges=True) for _ in inputs]
    for one, values in zip(stats, inputs, strict=True):
        one.add(values, routed=len(values))
        one.finish()
    lend_ranges(stats)
    assert [one.largest.tolist() for one in stats] == [[1, 3], [2, 1], [2, 3]]


def test_an_expert_is_damped_by_how_few_tokens_it_saw_for_its_channels():
    few, all_of_it = InputStats("expert"), InputStats("layer")
    few.add(torch.randn(8, 32), routed=8)
    all_of_it.add(torch.randn(8, 32))
    assert (few.doubt, all_of_it.doubt) == (4.0, 0.0)
    assert all_of_it.damped is all_of_it.gram
    added = (few.damped - few.gram).diagonal()
    assert torch.allclose(added, 4 * few.gram.diagonal().mean().expand(32), atol=1e-3)


def test_a_pass_has_room_for_the_experts_of_a_layer():
    experts = {
        f"layers.{layer}.mlp.experts.{expert}.{name}": shape
        for layer in range(3)
        for expert in range(128)
        for name, shape in (
            ("gate_proj", (768, 2048)),
            ("up_proj", (768, 2048)),
            ("down_proj", (2048, 768)),
        )
    }
    linears = {"layers.0.self_attn.o_proj": (2048, 4096)}
    dense = ModelFacts("m", Path(), "llama", linears, 10**9, 4096, 1000)
    mixture = replace(dense, linears=linears | experts)
    (without, more), (taken, same) = (NativeAWQ().pass_bytes(f, 1) for f in (dense, mixture))
    grams, copied = 4 * 128 * (2048**2 + 768**2), 4 * 128 * 3 * 2048 * 768
    # Hidden states are as wide as what most layers read.
    states = 2 * 4 * (2048 - 4096)
    assert taken - without == states + grams + 2 * 2**30 + copied and more == same


def test_a_dense_model_has_nothing_to_tell(pocket_dir, tmp_path):
    model = SourceModel(read_facts(pocket_dir, "pocket"), "cpu")
    found = run(model, CalibrationTokens(SAMPLES, all_experts=True), [], silent, importance=True)
    assert not found.coverage
