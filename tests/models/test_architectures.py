"""Architectures beyond plain decoders: convolutions, odd layers, experts, models that see."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.miniatures import SIZES, build
from qsweep.base.errors import IncompatibleTrial
from qsweep.formats.container import container
from qsweep.formats.dense import load_dense
from qsweep.formats.gptq import CONTAINER as GPTQ_CONTAINER
from qsweep.formats.hf import reference_artifact
from qsweep.formats.packed import kept_settings
from qsweep.models.architecture import auto_class, empty_model, expert_counts, holds_experts
from qsweep.models.experts import is_experts
from qsweep.models.facts import TensorHeader, _decoder_shapes, _linears, read_facts
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.checks import check_packing
from qsweep.quantizers.isolated import AutoAWQ, AutoGPTQ
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.native.capture import capture
from qsweep.quantizers.native.graph import find_decoder, is_linear
from qsweep.quantizers.rtn import RTN
from qsweep.text.calibration import CalibrationTokens

SAMPLES = torch.randint(5, 500, (2, 48), generator=torch.Generator().manual_seed(0)).tolist()
IDS = torch.randint(5, 500, (1, 32), generator=torch.Generator().manual_seed(1))
LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
# Convolutions, projections of a few rows, subclasses of nn.Linear: none of them has experts.
DENSE = {
    "qwen3_5_text": LINEAR_ATTENTION,
    "qwen3_next": LINEAR_ATTENTION | {"mlp_only_layers": [0, 1]},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "mamba2": {"num_heads": 16, "head_dim": 8, "n_groups": 1, "state_size": 8, "expand": 2},
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "head_dim": None},
    "mamba": {"time_step_rank": 4, "state_size": 8},
}


def dense(artifact, path):
    return load_dense(artifact, path, dtype=torch.float32, device="cpu")


def quantized(quantizer, facts, out):
    quantizer.check(facts)
    out.mkdir()
    artifact = quantizer.quantize(SourceModel(facts, "cpu"), CalibrationTokens(SAMPLES), out)
    return artifact, dense(artifact, facts.path)


@pytest.mark.parametrize("model_type", DENSE)
def test_dense_hybrids_are_quantized_and_what_is_no_linear_layer_stays(
    model_type, tmp_path, pocket_dir
):
    path = build(model_type, tmp_path / "model", pocket_dir, **SIZES | DENSE[model_type])
    facts = read_facts(path, "mini")
    assert facts.experts is False
    reference = dense(reference_artifact(facts), path)
    decoder = find_decoder(reference)
    own = {
        decoder.full_name(index, name): module
        for index, linears in enumerate(decoder.linears)
        for name, module in linears.items()
    }
    assert facts.all_linears == {name: tuple(m.weight.shape) for name, m in own.items()}
    others = facts.all_linears.keys() - facts.linears.keys()
    for quantizer in (RTN(group_size=32), NativeGPTQ(group_size=32), NativeAWQ(group_size=32)):
        artifact, model = quantized(quantizer, facts, tmp_path / quantizer.method)
        kept = artifact.details.get("kept_layers", [])
        odd = {n for n, s in facts.linears.items() if not GPTQ_CONTAINER.fits(32, s)}
        assert kept == sorted(odd | others)
        packed = own.keys() - set(kept)
        assert artifact.size.linear_weights == sum(own[n].weight.numel() for n in packed)
        assert artifact.size.bpw < 5
        weights = dict(model.named_parameters())
        for name, weight in reference.named_parameters():
            layer = name.removesuffix(".weight")
            changed = not torch.equal(weights[name], weight)
            assert changed or layer not in packed, name
            if quantizer.method != "awq" and layer not in packed:
                assert not changed, name
        with torch.no_grad():
            assert torch.isfinite(model(input_ids=IDS).logits).all()


def test_scales_that_go_into_layers_left_in_16_bits_cancel_out(tmp_path, pocket_dir):
    # q, k and v share a norm with AWQ's scales; values have 4 rows and stay.
    extra = SIZES | {"num_key_value_heads": 1, "head_dim": 36, "num_attention_heads": 8}
    path = build("llama", tmp_path / "model", pocket_dir, **extra)
    facts = read_facts(path, "mini")
    artifact, model = quantized(NativeAWQ(bits=8, group_size=32), facts, tmp_path / "awq")
    kept = artifact.details["kept_layers"]
    assert {name.rpartition(".")[2] for name in kept} == {"k_proj", "v_proj"}
    settings = json.loads((artifact.path / "config.json").read_text())["quantization_config"]
    assert settings["modules_to_not_convert"] == kept
    assert all(any(re.match(rule[2:], name) for rule in settings["dynamic"]) for name in kept)
    with torch.no_grad():
        own = dense(reference_artifact(facts), path)(input_ids=IDS).logits.log_softmax(-1)
        found = model(input_ids=IDS).logits.log_softmax(-1)
    assert (own.exp() * (own - found)).sum(-1).mean() < 1e-3


def test_rules_for_loaders_name_one_layer_and_what_is_below_it():
    (rule,) = kept_settings(["model.layers.1.mlp.up"])["dynamic"]
    assert rule.startswith("-:")
    for name, hit in {
        "model.layers.1.mlp.up": True,
        "model.layers.1.mlp.up.inner": True,
        "model.layers.1.mlp.up_proj": False,
        "model.layers.11.mlp.up": False,
        "language_model.model.layers.1.mlp.up": True,
    }.items():
        assert bool(re.match(rule[2:], name)) is hit
    assert kept_settings([]) == {}


def facts_of(linears, model_type="llama", experts=False):
    return ModelFacts("mini", Path(), model_type, linears, 1000, 512, 100, experts)


@pytest.mark.parametrize("packing", ["gptq", "awq"])
def test_a_minority_of_odd_layers_stays_and_a_majority_is_refused(packing):
    def check(odd, group_size=128):
        linears = {"layers.0.a": (1024, 1024), "layers.0.b": odd}
        check_packing(packing, container(packing), 4, group_size, facts_of(linears))

    for odd in ((4, 1024), (40, 1024), (1024, 96), (1020, 512)):
        check(odd)
    with pytest.raises(IncompatibleTrial, match="by 32, but layers.0.b is 1028 x 1024"):
        check((1028, 1024))
    with pytest.raises(IncompatibleTrial, match=r"divide the 1056 inputs of .*: (16, )?32, -1$"):
        check((1024, 1056))
    with pytest.raises(IncompatibleTrial, match="rtn leaves such layers in 16 bits"):
        check_packing(
            "x", container(packing), 4, 128, facts_of({"a": (512, 512), "b": (4, 512)}), whole=True
        )


@pytest.mark.parametrize(
    ("name", "shape", "counts", "expected"),
    [
        ("layers.0.mlp.experts.0.up_proj.weight", (64, 32), set(), True),
        ("layers.0.mlp.experts.gate_up_proj", (4, 64, 32), set(), True),
        ("layers.0.block_sparse_moe.input_linear.weight", (4, 64, 32), {4}, True),
        ("layers.0.linear_attn.conv1d.weight", (64, 1, 4), {64}, False),
        ("layers.0.conv.conv.weight", (64, 64, 3), {64}, False),
        ("layers.0.shared_mlp.input_linear.weight", (64, 32), {4}, False),
        ("layers.0.rg_lru.input_gate_weight", (8, 16, 16), set(), False),
    ],
)
def test_experts_are_told_by_their_tensors(name, shape, counts, expected):
    assert holds_experts([(name, shape)], counts) is expected


@pytest.mark.parametrize("model_type", ["granitemoe", "qwen3_moe"])
def test_mixtures_of_experts_are_refused_where_others_leave_them_out(
    model_type, tmp_path, pocket_dir
):
    extra = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
    path = build(model_type, tmp_path / "model", pocket_dir, **SIZES | extra)
    facts = read_facts(path, "mini")
    assert facts.experts is True
    for quantizer in (RTN(group_size=32), NativeGPTQ(group_size=32), NativeAWQ(group_size=32)):
        quantizer.check(facts)
    for quantizer in (AutoAWQ(), AutoGPTQ()):
        with pytest.raises(IncompatibleTrial, match="mixture of experts") as caught:
            quantizer.check(facts)
        assert "quant.backend=native" in str(caught.value)


VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def test_the_text_decoder_of_a_model_that_sees_is_measured_and_quantized(tmp_path, pocket_dir):
    text = SIZES | {"model_type": "mistral"}
    from transformers.quantizers.quantizers_utils import should_convert_module

    path = build(
        "mistral3", tmp_path / "model", pocket_dir, "AutoModelForImageTextToText",
        text_config=text, vision_config=VISION | {"model_type": "pixtral", "head_dim": 16},
    )  # fmt: skip
    facts = read_facts(path, "mini")
    assert all("language_model" in name for name in facts.linears)
    reference = dense(reference_artifact(facts), path)
    with torch.no_grad():
        own = reference(input_ids=IDS).logits.log_softmax(-1)
    tower = {n: p for n, p in reference.named_parameters() if "vision_tower" in n}
    for quantizer in (RTN(bits=8, group_size=32), NativeGPTQ(bits=8, group_size=32)):
        artifact, model = quantized(quantizer, facts, tmp_path / quantizer.method)
        weights = dict(model.named_parameters())
        assert all(torch.equal(weights[name], value) for name, value in tower.items())
        settings = json.loads((artifact.path / "config.json").read_text())["quantization_config"]
        named = settings["modules_to_not_convert"]
        for name, module in reference.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith(("lm_head", "projector")):
                outside = "vision_tower" in name
                assert should_convert_module(name, named) is not outside or "projector" in name
        rules = [rule.removeprefix("-:") for rule in settings["dynamic"]]
        one = next(name for name in tower if ".attention." in name)
        assert any(re.match(rule, one) for rule in rules)
        assert "kept_layers" not in artifact.details
        with torch.no_grad():
            found = model(input_ids=IDS).logits.log_softmax(-1)
        assert (own.exp() * (own - found)).sum(-1).mean() < 1e-3


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "llama"}, "AutoModelForCausalLM"),
        ({"model_type": "qwen3_vl"}, "AutoModelForMultimodalLM"),
        ({"model_type": "qwen3_5"}, "AutoModelForCausalLM"),
        (
            {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"]},
            "AutoModelForMultimodalLM",
        ),
        ({"model_type": "of_tomorrow"}, "AutoModelForCausalLM"),
        ({"model_type": "x", "auto_map": {"AutoModelForCausalLM": "m.X"}}, "AutoModelForCausalLM"),
        ({"model_type": "clip"}, None),
        ({"model_type": "mllama_text_model"}, None),
    ],
)
def test_the_class_that_builds_a_model(config, expected):
    assert auto_class(config) == expected


def test_what_gives_no_next_token_is_skipped(tiny_model, tmp_path):
    shutil.copytree(tiny_model("llama"), tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text())
    for change, message in (
        ({"model_type": "clip"}, "no language model of the type 'clip'"),
        ({"model_type": "florence2", "is_encoder_decoder": True}, "an encoder with a decoder"),
    ):
        file.write_text(json.dumps(config | change))
        with pytest.raises(IncompatibleTrial, match=message):
            read_facts(tmp_path / "m", "m")


def test_layers_that_are_no_chain_are_walked_as_one():
    from transformers import AutoConfig, AutoModelForCausalLM

    # XLM keeps attention and feed-forward in two lists that take turns.
    config = AutoConfig.for_model("xlm", vocab_size=512, emb_dim=64, n_layers=2, n_heads=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    decoder, chunks, _ = capture(model, SAMPLES, "cpu")
    assert decoder.is_whole
    assert decoder.linears[0].keys() > {"attentions.0.q_lin", "ffns.1.lin2"}
    assert chunks[0].hidden.tolist() == SAMPLES


class Scaled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_a_subclass_is_linear_if_it_computes_the_same():
    class Same(nn.Linear):
        def forward(self, input):
            return input @ self.weight.T + self.bias

    class Router(nn.Linear):
        def forward(self, input):
            return super().forward(input), input

    assert is_linear(Same(8, 4))
    assert not is_linear(Scaled(8, 4))
    assert not is_linear(Router(8, 4))
    assert not is_experts(nn.Conv1d(8, 8, 3, groups=8))


def causal_types():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.slow
def test_names_tell_linear_layers_and_experts_as_modules_do():
    """The rule by names against the modules of every causal language model of transformers."""
    from transformers import AutoConfig
    from transformers.pytorch_utils import Conv1D

    compared = 0
    for model_type in causal_types():
        try:
            config = AutoConfig.for_model(model_type)
            model = empty_model(config)
        except Exception as error:  # noqa: BLE001 - a default configuration that builds no model
            print(model_type, type(error).__name__, str(error)[:100])
            continue
        text = config.get_text_config().to_dict()
        tensors = {
            name: TensorHeader(tuple(tensor.shape), "F32", Path())
            for name, tensor in model.state_dict().items()
        }
        experts = holds_experts(_decoder_shapes(tensors), expert_counts(text))
        has = any(is_experts(module) for module in model.modules())
        assert experts or not has, model_type
        if experts:
            continue
        modules = dict(model.named_modules())
        found = {name for name, _ in _linears(tensors, transposed=False)}
        for name in found:
            assert isinstance(modules[name], nn.Linear | Conv1D), (model_type, name)
        compared += bool(found)
    assert compared > 80
