"""Rules per module: which layers of a model get other bits, another format, or none."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from qsweep.api.composition import compose_trials
from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.formats.numbers import NF4, NVFP4, Q40, Int
from qsweep.formats.packed_settings import stated_of
from qsweep.models.roles import kept_as
from qsweep.models.source import ModelFacts
from qsweep.quantizers.gptqmodel import AWQ, GPTQ
from qsweep.quantizers.isolated import AutoGPTQ
from qsweep.quantizers.kept import kept_details
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.rtn import RTN
from qsweep.quantizers.rules import Rule, read_rules, rule_of
from qsweep.sweep.config import describe, quantizer, trial_config

SHAPES = {
    "self_attn.q_proj": (128, 128),
    "self_attn.k_proj": (128, 128),
    "self_attn.v_proj": (128, 128),
    "self_attn.o_proj": (128, 128),
    "mlp.gate_proj": (256, 128),
    "mlp.up_proj": (256, 128),
    "mlp.down_proj": (128, 256),
}
LAYERS = {f"model.layers.{n}.{name}": shape for n in range(2) for name, shape in SHAPES.items()}


@pytest.fixture
def facts(pocket_dir):
    return ModelFacts("mini", pocket_dir, "llama", LAYERS, 10**6, 512, 512, experts=False)


@pytest.fixture
def mixture(facts, tmp_path):
    experts = {
        f"model.layers.{n}.mlp.experts.{e}.{name}": (128, 128)
        for n in range(2)
        for e in range(2)
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    attention = {name: shape for name, shape in LAYERS.items() if "self_attn" in name}
    gates = {f"model.layers.{n}.mlp.gate": (32, 128) for n in range(2)}
    (path := tmp_path / "mixture").mkdir()
    (path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    save_file(
        {f"{name}.weight": torch.zeros(128, 128) for name in experts}, path / "model.safetensors"
    )
    found = replace(facts, path=path, model_type="qwen3_moe", experts=True)
    return replace(found, linears=attention | experts, kept=gates)


def refusal(facts, rules, cls=NativeGPTQ, **options):
    with pytest.raises((ConfigError, IncompatibleTrial)) as caught:
        cls(**{"group_size": 64, **options, "rules": rules}).check(facts)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("pattern", "name", "hit"),
    [
        ("*.down_proj", "model.layers.0.mlp.down_proj", True),
        ("*.down_proj", "model.layers.0.mlp.down_proj_2", False),
        ("*.experts.*", "model.layers.0.mlp.experts.3.up_proj", True),
        ("*.experts.*", "model.layers.0.mlp.shared_experts.up_proj", False),
        ("model.layers.?.mlp.*", "model.layers.12.mlp.up_proj", False),
        ("*.layers.[0-3].*", "model.layers.2.mlp.up_proj", True),
        ("*.layers.[!0-3].*", "model.layers.2.mlp.up_proj", False),
        ("*.layers.1.*", "model.layers.11.mlp.up_proj", False),
        ("a+b", "a+b", True),
    ],
)
def test_patterns_are_globs_over_whole_names(pattern, name, hit):
    assert Rule(pattern).matches(name) is hit


def test_a_pattern_for_all_parts_of_a_module_means_the_module_too():
    # vLLM asks for all experts of a layer by the module's name.
    assert Rule("*.experts.*").matches("model.layers.0.mlp.experts")


def test_the_first_rule_that_matches_counts():
    rules = read_rules({"*.0.mlp.down_proj": "keep", "*.down_proj": 8})
    assert rule_of(rules, "layers.0.mlp.down_proj") is rules[0]
    assert rule_of(rules, "layers.1.mlp.down_proj") is rules[1]
    assert rule_of(rules, "layers.1.mlp.up_proj") is None


def test_options_have_rules_in_order_and_only_where_there_are_any():
    assert "rules" not in NativeGPTQ().options()
    one = NativeGPTQ(rules={"*.up_proj": 8, "*.o_proj": "keep"})
    assert one.options()["rules"] == ["*.up_proj=8", "*.o_proj=keep"]
    other = NativeGPTQ(rules={"*.o_proj": 16, "*.up_proj": {"bits": "8"}})
    assert other.options()["rules"] == ["*.o_proj=keep", "*.up_proj=8"]
    assert NativeGPTQ(rules={}).options() == NativeGPTQ().options()
    assert hash(one) != hash(other)


def test_what_a_rule_leaves_open_is_as_in_other_layers():
    rules = {"*.up_proj": {"bits": 3, "group_size": 32}, "*.o_proj": 8, "*.q_proj": "keep"}
    quant = NativeGPTQ(group_size=64, desc_act=True, scale_search="mse", rules=rules)
    up = quant.of_layer("0.mlp.up_proj", (64, 64))
    assert (up.bits, up.group_size, up.desc_act, up.scale_search) == (3, 32, True, "mse")
    assert (quant.of_layer("0.o_proj", (64, 64)).group_size) == 64
    assert quant.of_layer("0.q_proj", (64, 64)) is None
    assert quant.of_layer("0.k_proj", (64, 64)) == NativeGPTQ(
        group_size=64, desc_act=True, scale_search="mse"
    )


def test_bits_beside_a_format_that_has_none_to_choose_are_integers():
    quant = RTN(group_size=32, format=NVFP4(), rules={"*.o_proj": 8, "*.up_proj": "fp8"})
    own = quant.of_layer("0.o_proj", (64, 64))
    assert (own.format.name, own.bits, own.group_size, own.holder) == (
        "int",
        8,
        32,
        "compressed-tensors",
    )
    assert quant.of_layer("0.up_proj", (64, 64)).format.name == "fp8"
    # What is w4a16 by another name takes part in rules as integers do.
    named = RTN(format=Int("compressed-tensors"), sym=True, rules={"*.o_proj": 3})
    assert named.format.name == "w4a16"
    assert named.of_layer("0.o_proj", (128, 128)).bits == 3


def test_few_bits_anywhere_make_the_pass_sequential():
    assert NativeGPTQ(bits=8).options()["sequential"] is False
    assert NativeGPTQ(bits=8, rules={"*.up_proj": 3}).options()["sequential"] is True


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"*.downproj": 8}, "did you mean '*.down_proj'"),
        ({"*": 8, "*.down_proj": 4}, "'*' stands before it"),
        ({"*": "keep"}, "nothing is left to quantize"),
        ({"*.down_proj": 5}, "2, 3, 4 or 8 bits, not 5"),
        ({"*.down_proj": 0}, "must be at least 1"),
        ({"*.down_proj": "kep"}, "no such format 'kep'; did you mean 'keep'?"),
        ({"*.down_proj": "nvpf4"}, "did you mean 'nvfp4'"),
        ({"*.down_proj": {"bit": 3}}, "did you mean 'bits'?"),
        ({"*.down_proj": {"group_size": 96}}, "group_size=96"),
        ({"*.down_proj": {"format": "nvfp4", "bits": 8}}, "format=nvfp4 fixes it"),
        ({"*.down_proj": {}}, "an empty mapping"),
        ({"*.down_proj": True}, "must be a number of bits"),
        ({"*.down_proj": 3.5}, "must be a number of bits"),
        ({"*.down_proj": None}, "must be a number of bits"),
        ({"*.down_proj": "nvfp4"}, "a checkpoint is one of them"),
        ({"": 8}, "an empty pattern"),
        ({"lm_head": 8}, "lm_head stays in 16 bits"),
        ("*.down_proj", "must be a mapping"),
        (
            ["*.down_proj=8", "*.down_proj=4"],
            "*.down_proj: is said to be 8 and 4; leave one of them",
        ),
        (["*.down_proj=keep", "*.down_proj=4"], "is said to be keep and 4"),
        ({"*.layers.[3-0].*": 8}, "is no pattern (bad character range 3-0"),
        ({"*.down_proj": "q4_k"}, "(format=q4_k for all layers)"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_in_one_line(facts, rules, told):
    message = refusal(facts, rules)
    assert told in message
    assert message.startswith("quant.rules")


def test_containers_of_one_kind_of_layer_take_only_layers_that_stay(facts):
    message = refusal(facts, {"*.down_proj": 8}, NativeAWQ)
    assert message.endswith(
        "keep is the only rule that it holds; format.container=compressed-tensors holds others"
    )
    assert "quant.backend=native with format.container=compressed-tensors" in refusal(
        facts, {"*.down_proj": 8}, AWQ
    )
    for value in (8, "fp8", "fp4"):
        assert "keep is the only rule" in refusal(facts, {"*.down_proj": value}, RTN, format=NF4())
    NativeAWQ(group_size=64, rules={"*.down_proj": "keep"}).check(facts)
    mixed = NativeAWQ(
        group_size=64, format=Int("compressed-tensors"), rules={"*.down_proj": {"bits": 8}}
    )
    mixed.check(facts)


def test_libraries_that_treat_layers_alike_refuse_rules(facts):
    assert "quant.backend=native does" in refusal(facts, {"*.down_proj": 8}, AutoGPTQ)


def test_the_output_head_may_be_named_where_it_stays(facts):
    NativeGPTQ(group_size=64, rules={"lm_head": "keep"}).check(facts)


def test_routers_stay_unless_a_pattern_ends_in_their_name(mixture):
    router = "model.layers.0.mlp.gate"
    assert NativeGPTQ(group_size=64).of_layer(router, (32, 128)) is None
    assert NativeGPTQ(group_size=64, rules={"*.mlp.*": 8}).of_layer(router, (32, 128)) is None
    asked = NativeGPTQ(group_size=64, rules={"*.mlp.gate": 8})
    assert asked.of_layer(router, (32, 128)).bits == 8
    asked.check(mixture)
    assert "(router)" in refusal(mixture, {"*.mlp.gat*": 8})
    assert "'*.gate'" in refusal(mixture, {"*.0.mlp.g?te": 8})


def test_all_who_quantize_keep_the_same_layers(mixture):
    rules = {"*.o_proj": "keep"}
    quantizers = [cls(group_size=64, rules=rules) for cls in (RTN, NativeGPTQ, NativeAWQ, GPTQ)]
    kept = quantizers[0].kept(mixture)
    assert all(quant.kept(mixture) == kept for quant in quantizers)
    assert kept_details(kept)["kept_by"] == {
        "quant.rules: *.o_proj": ["model.layers.*.self_attn.o_proj"],
        "router": ["model.layers.*.mlp.gate"],
    }


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.block_sparse_moe.gate",
        "model.layers.0.mlp.gate.wg",
        "model.layers.0.feed_forward.router",
        "model.layers.0.block_sparse_moe.router.layer",
        "model.layers.0.mlp.router.classifier",
        "model.layers.0.mlp.shared_expert_gate",
        "model.layers.0.linear_attn.in_proj_ba",
        "model.layers.0.linear_attn.in_proj_a",
        "backbone.layers.0.mixer.x_proj",
        "backbone.layers.0.mixer.dt_proj",
    ],
)
def test_what_the_field_keeps_stays(name):
    assert kept_as(name)


@pytest.mark.parametrize(
    "name",
    [
        *LAYERS,
        "model.layers.0.mlp.gate_up_proj",
        "model.layers.0.linear_attn.in_proj_qkvz",
        "model.layers.0.mlp.shared_expert.gate_proj",
        "backbone.layers.0.mixer.in_proj",
        "model.layers.0.self_attn.g_proj",
    ],
)
def test_what_the_field_quantizes_does_not(name):
    assert kept_as(name) is None


def test_rules_are_written_as_gptqmodel_reads_them(mixture):
    rules = {"*.1.*.o_proj": "keep", "*.experts.*": {"bits": 3, "group_size": 32}, "*": 8}
    quant = NativeGPTQ(group_size=64, rules=rules)
    settings = quant.encoders(mixture).settings(sorted(quant.kept(mixture)))

    def found(layer):
        for rule, values in settings["dynamic"].items():
            if re.match(rule[2:], layer):
                return values if rule.startswith("+") else False
        return None

    assert found("model.layers.0.mlp.gate") is False
    assert found("model.layers.1.self_attn.o_proj") is False
    assert found("lm_head") is False
    assert found("language_model.model.layers.0.self_attn.o_proj") == {
        "bits": 8,
        "group_size": 64,
    }
    expert = "model.layers.1.mlp.experts.1.up_proj"
    assert found(expert) == found("model.layers.1.mlp.experts") == {"bits": 3, "group_size": 32}
    # What is read again is the same.
    assert stated_of(settings, expert).bits[0] == 3
    assert stated_of(settings, "model.layers.0.self_attn.q_proj").bits[0] == 8


def test_runtimes_are_those_that_follow_the_rules(facts, mixture):
    def runtimes(model, cls=NativeGPTQ, **rules):
        rules = {name.replace("_of_", "."): value for name, value in rules.items()}
        return cls(group_size=64, rules={f"*.{n}": v for n, v in rules.items()}).encoders(model)

    assert NativeGPTQ(group_size=64).encoders(facts).runtimes == (
        "gptqmodel",
        "transformers",
        "vllm",
        "exllamav2",
    )
    assert runtimes(facts, down_proj=8).runtimes == ("gptqmodel", "vllm")
    # Rules for a part of what vLLM makes one matrix of; and bits that it has no kernel for.
    assert runtimes(facts, q_proj=8).runtimes == ("gptqmodel",)
    assert runtimes(facts, down_proj=3).runtimes == ("gptqmodel",)
    assert runtimes(mixture, **{"experts.*": 8}).runtimes == ("gptqmodel", "vllm")
    assert runtimes(mixture, **{"experts.1.*": 8}).runtimes == ("gptqmodel",)


def test_vllm_runs_qwens_linear_attention_as_one(facts):
    # in_proj_qkvz of in_proj_qkv and in_proj_z, in_proj_ba of the two that stay by default.
    shapes = {"in_proj_qkv": (256, 128), "in_proj_z": (128, 128), "out_proj": (128, 128)}
    names = {f"model.layers.0.linear_attn.{name}": shape for name, shape in shapes.items()}
    model = replace(facts, linears=names)

    def runtimes(rules):
        held = Int("compressed-tensors")
        return RTN(sym=True, format=held, rules=rules).encoders(model).runtimes

    assert "vllm" in runtimes({"*.out_proj": 8})
    assert "vllm" not in runtimes({"*.in_proj_z": 8})
    assert "vllm" in runtimes({"*.in_proj_*": 8})


def test_groups_of_compressed_tensors_do_not_overlap(facts):
    # The library looks at targets in alphabetical order, whichever group stands first.
    quant = RTN(
        bits=4,
        sym=True,
        group_size=64,
        format=Int("compressed-tensors"),
        rules={"*.mlp.down_proj": 8, "*.0.*": 3, "*.o_proj": "keep"},
    )
    quant.check(facts)
    settings = quant.encoders(facts).settings(sorted(quant.kept(facts)))
    bits = {
        name: [
            group["weights"]["num_bits"]
            for group in settings["config_groups"].values()
            for target in group["targets"]
            if target.startswith("re:") and re.match(target[3:], name)
        ]
        for name in LAYERS
    }
    assert bits["model.layers.0.mlp.down_proj"] == [8]
    assert bits["model.layers.0.mlp.up_proj"] == [3]
    assert bits["model.layers.1.mlp.up_proj"] == []
    assert max(map(len, bits.values())) == 1


def test_names_tell_short_rules_and_count_long_ones():
    short = NativeGPTQ(rules={"*.down_proj": 8, "*.o_proj": "keep"})
    assert describe(short) == "gptq 4-bit g128 *.down_proj=8 *.o_proj=keep"
    long = NativeGPTQ(rules={f"*.layers.{n}.*": 8 for n in range(9)})
    assert re.fullmatch("gptq 4-bit g128 9 rules [0-9a-f]{4}", describe(long))
    # Assignments of as many rules are told apart, before there is an artifact.
    other = NativeGPTQ(rules={f"*.layers.{n}.*": 8 if n else 3 for n in range(9)})
    again = NativeGPTQ(rules=[f"*.layers.{n}.*=8" for n in range(9)])
    assert describe(other) != describe(long) == describe(again)


def test_rules_come_from_a_configuration(facts):
    values = {
        "_target_": "qsweep.quantizers.native.NativeGPTQ",
        "group_size": 64,
        "rules": {"*.down_proj": "8", "*.o_proj": "keep"},
    }
    quant = quantizer(values)
    assert quant.options()["rules"] == ["*.down_proj=8", "*.o_proj=keep"]
    with pytest.raises(ConfigError, match="must be a mapping"):
        quantizer(values | {"rules": 8})


def test_the_command_line_sweeps_over_rules():
    words = [
        "quant=gptq",
        "quant.rules={},{*.down_proj: 8, *.experts.*: {bits: 3}, *.o_proj: keep}",
    ]
    trials = [trial_config(found) for found in compose_trials(words)]
    assert [trial.quant.options().get("rules") for trial in trials] == [
        None,
        (rules := ["*.down_proj=8", "*.experts.*=3", "*.o_proj=keep"]),
    ]
    # Jobs get them through files whose keys are sorted.
    again = trial_config(json.loads(json.dumps(trials[1].resolved, sort_keys=True)))
    assert again.quant.options()["rules"] == rules
    assert trials[1].written["quant"]["rules"] == rules
    assert trials[0].resolved["quant"] == {**trials[0].resolved["quant"], "rules": {}}


def test_bits_name_llama_cpps_formats_in_a_gguf(facts, mixture):
    quant = RTN(format=Q40(), rules={"*.down_proj": 6, "*.o_proj": "q8_0"})
    assert quant.of_layer("0.down_proj", (256, 256)).format.name == "q6_k"
    with pytest.raises(ConfigError, match="formats of 2, 3, 4, 5, 6, 8 bits"):
        RTN(format=Q40(), rules={"*.down_proj": 7})
    for value in ({"group_size": 64}, {"bits": 6, "group_size": 64}):
        with pytest.raises(ConfigError, match="each of gguf's formats fixes it; take it out"):
            RTN(format=Q40(), rules={"*.down_proj": value})
    for value in ("nvfp4", {"format": "int", "bits": 4}):
        assert "name one of q2_k, q3_k" in refusal(facts, {"*.down_proj": value}, RTN, format=Q40())
    # All experts of a layer lie in one tensor.
    message = refusal(mixture, {"*.experts.0.*": 8}, RTN, format=Q40())
    assert "those of model.layers.0.mlp.experts.*.gate_proj differ; name them all" in message
