"""What rules per module make of a model: each layer is what its rule says, and nothing else is."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from helpers.miniatures import SIZES, build
from qsweep.base.errors import IncompatibleTrial
from qsweep.formats.container import container
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.formats.numbers import NVFP4, Int
from qsweep.models.facts import read_facts
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ, quantize_grid
from qsweep.quantizers.rtn import RTN
from qsweep.text.calibration import CalibrationTokens

SAMPLES = torch.randint(5, 500, (2, 48), generator=torch.Generator().manual_seed(0)).tolist()
COMPRESSED = Int("compressed-tensors")
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS = {"llama": {}, "qwen3_moe": EXPERTS | {"decoder_sparse_step": 1}}
RULES = {
    "*.0.self_attn.q_proj": "keep",
    "*.down_proj": {"bits": 8, "group_size": -1},
    "*.layers.1.*.up_proj": 3,
}
QUANTIZERS = {
    "rtn": RTN(group_size=32, rules=RULES),
    "gptq": NativeGPTQ(group_size=32, rules=RULES),
    "gptaq": NativeGPTQ(group_size=32, gptaq_alpha=0.5, rules=RULES),
    "gptq that weighs outputs": NativeGPTQ(group_size=32, gptq_output_hessian=True, rules=RULES),
    "gptq in compressed-tensors": NativeGPTQ(group_size=32, format=COMPRESSED, rules=RULES),
    "gptq beside nvfp4": NativeGPTQ(group_size=32, format=NVFP4(), rules={**RULES, "*.up_proj": 4}),
    "awq": NativeAWQ(group_size=32, rules={"*.0.self_attn.q_proj": "keep"}),
    "awq in compressed-tensors": NativeAWQ(group_size=32, format=COMPRESSED, rules=RULES),
}


@dataclass
class Made:
    """A model, and what each quantizer made of it."""

    facts: ModelFacts
    artifacts: dict


@pytest.fixture(scope="module", params=MODELS)
def made(request, tmp_path_factory, pocket_dir):
    """All of them in one pass, as a sweep makes them, but for rounding, which is made alone."""
    folder = tmp_path_factory.mktemp("rules")
    sizes = SIZES | MODELS[request.param]
    facts = read_facts(build(request.param, folder / "model", pocket_dir, **sizes), "mini")
    model, tokens = SourceModel(facts, "cpu"), CalibrationTokens(SAMPLES)
    outs = {name: folder / name for name in QUANTIZERS}
    for name, out in outs.items():
        QUANTIZERS[name].check(facts)
        out.mkdir()
    together = [name for name in QUANTIZERS if name != "rtn"]
    artifacts = quantize_grid(model, tokens, [(QUANTIZERS[name], outs[name]) for name in together])
    found = dict(zip(together, artifacts, strict=True))
    return Made(facts, {**found, "rtn": QUANTIZERS["rtn"].quantize(model, None, outs["rtn"])})


def weights(made, name):
    artifact = reference_artifact(made.facts) if name is None else made.artifacts[name]
    model = load_dense(artifact, made.facts.path, dtype=torch.float32, device="cpu")
    return model.state_dict()


def bits_of(type_):
    return 4 if type_.startswith("nvfp4") else int(type_.removeprefix("int").partition(" ")[0])


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_layer_is_what_its_rule_says(made, name):
    artifact, quant = made.artifacts[name], QUANTIZERS[name]
    stored = container(artifact.format).stored(artifact.path)
    found = {t.name.removesuffix(".weight"): t for t in stored if t.quantized}
    wanted = quant.quantized(made.facts)
    assert found.keys() == wanted.keys()
    for layer, own in wanted.items():
        assert bits_of(found[layer].type) == own.bits, layer
    assert {own.bits for own in wanted.values()} == ({4} if name == "awq" else {3, 4, 8})
    assert artifact.size.linear_weights == sum(t.weights for t in found.values())
    assert artifact.details["kept_by"]["quant.rules: *.0.self_attn.q_proj"] == [
        "model.layers.0.self_attn.q_proj"
    ]
    # Loaders are told of all that stays.
    settings = json.loads((artifact.path / "config.json").read_text())["quantization_config"]
    told = settings.get("modules_to_not_convert", settings.get("ignore"))
    for layer in artifact.details["kept_layers"]:
        assert any(layer.replace(".", dot) in one for one in told for dot in (".", "\\.")), layer


def test_layers_are_as_they_would_be_with_their_own_options_everywhere(made, tmp_path):
    mixed = weights(made, "rtn")
    model = SourceModel(made.facts, "cpu")
    for bits, size, layer in ((8, -1, "mlp.down_proj"), (3, 32, "mlp.up_proj"), (4, 32, "o_proj")):
        out = tmp_path / str(bits)
        out.mkdir()
        artifact = RTN(bits=bits, group_size=size).quantize(model, None, out)
        alone = load_dense(artifact, made.facts.path, dtype=torch.float32, device="cpu")
        names = [
            n for n in mixed if n.startswith("model.layers.1.") and n.endswith(f"{layer}.weight")
        ]
        for name in names:
            assert torch.equal(mixed[name], alone.state_dict()[name]), name


@pytest.mark.parametrize("name", ["rtn", *(n for n in QUANTIZERS if n.startswith("gptq"))])
def test_what_a_rule_keeps_is_unchanged_and_eight_bits_are_near(made, name):
    found, original = weights(made, name), weights(made, None)

    def error(layer):
        return float((found[layer] - original[layer]).norm() / original[layer].norm())

    down = "mlp.experts.down_proj" if made.facts.experts else "mlp.down_proj.weight"
    assert error("model.layers.0.self_attn.q_proj.weight") == 0
    assert 0.05 < error("model.layers.1.self_attn.q_proj.weight") < 0.3
    assert 0 < error(f"model.layers.0.{down}") < 0.02


def test_a_router_that_is_no_linear_layer_is_refused_where_it_is_asked_for(made, tmp_path):
    if not made.facts.experts:
        pytest.skip("no routers")
    quant = NativeGPTQ(group_size=32, rules={"*.mlp.gate": 8})
    facts = replace(made.facts, kept={name: (32, 64) for name in made.facts.kept})
    with pytest.raises(IncompatibleTrial, match="mlp.gate is no linear layer"):
        quant.quantize(SourceModel(facts, "cpu"), CalibrationTokens(SAMPLES), tmp_path)
