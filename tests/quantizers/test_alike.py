"""Layers that must be treated alike, by what a container or a server has as one."""

import pytest

from qsweep.models.facts import read_facts
from qsweep.quantizers.alike import fused_with
from qsweep.quantizers.native import NativeGPTQ
from qsweep.quantizers.rtn import RTN


def alike_groups(model, holder):
    """The linear layers by what they have in common, in the order of the checkpoint."""
    found = {}
    for layer in model.linears:
        found.setdefault(fused_with(layer, holder), []).append(layer)
    return list(found.values())


def named(model, holder):
    """The groups of several layers, by the last parts of their names."""
    groups = alike_groups(model, holder)
    return [[name.split(".")[-1] for name in group] for group in groups if len(group) > 1]


def test_vllm_has_q_k_v_and_gate_up_as_one(pocket_dir):
    facts = read_facts(pocket_dir, "pocket")
    found = named(facts, "gptq")
    assert found == named(facts, "compressed-tensors")
    assert sorted(map(sorted, found)) == sorted(
        4 * [["gate_proj", "up_proj"]] + 4 * [["k_proj", "q_proj", "v_proj"]]
    )
    assert named(facts, "gguf") == []
    assert [len(group) for group in alike_groups(facts, "awq")] == [28]


def test_experts_of_a_layer_are_one_kernel_or_three_stacks(mixture_dir, tiny_model):
    facts = read_facts(mixture_dir, "moe")
    experts = [name for name in facts.linears if ".0.mlp.experts." in name]
    assert sorted(experts) in map(sorted, alike_groups(facts, "gptq"))
    stacks = [group for group in alike_groups(facts, "gguf") if group[0] in experts]
    assert [len(group) for group in stacks] == 3 * [len(experts) // 3]
    deepseek = read_facts(tiny_model("deepseek_v2"), "deepseek")
    found = named(deepseek, "gptq")
    assert sorted(["q_a_proj", "kv_a_proj_with_mqa"]) in map(sorted, found)
    prefix = "model.layers.1.mlp.shared_experts"
    assert fused_with(f"{prefix}.gate_proj", "gptq") == fused_with(f"{prefix}.up_proj", "gptq")
    assert fused_with(f"{prefix}.up_proj", "gptq") != fused_with(
        "model.layers.1.mlp.experts.0.up_proj", "gptq"
    )


def test_parts_of_linear_attention_are_one(hybrid_dir):
    found = named(read_facts(hybrid_dir, "hybrid"), "gptq")
    assert ["in_proj_qkv", "in_proj_z"] in map(sorted, found)


@pytest.mark.parametrize("holder", ["gptq", "compressed-tensors"])
def test_rules_for_whole_groups_leave_vllm(holder, pocket_dir):
    """What follows the groups is served, and what tells apart any two of one is not."""
    facts = read_facts(pocket_dir, "pocket")
    make = {
        "gptq": lambda rules: NativeGPTQ(group_size=64, rules=rules),
        "compressed-tensors": lambda rules: RTN(bits=4, format=_int(), sym=True, rules=rules),
    }[holder]
    groups = alike_groups(facts, holder)
    for group in [group for group in groups if len(group) > 1][:2] + groups[:3]:
        rules = {name: 8 for name in group}
        if holder == "gptq" and len(group) > 1:  # read by the name that the whole has there
            rules[fused_with(group[0], holder)] = 8
        quant = make(rules)
        assert "vllm" in quant.encoders(facts).runtimes
        if len(group) > 1:
            assert "vllm" not in make({group[0]: 8}).encoders(facts).runtimes


def _int():
    from qsweep.formats.numbers import Int

    return Int("compressed-tensors")
