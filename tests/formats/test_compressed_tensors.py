"""compressed-tensors of every format against the library's own decompression and transformers' run."""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers.compressed import compress, one_layer, scheme_of
from helpers.quantized import read_existing
from qsweep.formats.artifact import Artifact
from qsweep.formats.compressed_tensors import CONTAINER
from qsweep.formats.dense import load_dense
from qsweep.formats.recognize import recognize

IDS = torch.randint(0, 4096, (2, 64), generator=torch.Generator().manual_seed(3))
LINEAR = ["Linear"]


def ints(bits, group_size=None, **more):
    strategy = {"strategy": "channel"} if group_size is None else {"group_size": group_size}
    return {"num_bits": bits, "type": "int", "symmetric": True, **strategy, **more}


def group(weights, **more):
    return {"group_0": {"targets": LINEAR, "weights": weights, **more}}


# By what a table of types shows of it: groups, and stored bits per weight of a layer of 256 x 256
# (scales in bfloat16 and the two integers of weight_shape included).
SHAPE = 2 * 64 / 256**2
SCHEMES = {
    "fp8 per tensor": ({"FP8": LINEAR}, 8 + 16 / 256**2),
    "fp8 per channel": ({"FP8_DYNAMIC": LINEAR}, 8 + 16 / 256),
    "fp8 block 128x128": ({"FP8_BLOCK": LINEAR}, 8 + 4 * 16 / 256**2),
    "int8 per channel": ({"W8A8": LINEAR}, 8 + 16 / 256),
    "int8 g128": ({"W8A16": LINEAR}, 8 + 16 / 128 + SHAPE),
    "int4 g128": ({"W4A16": LINEAR}, 4 + 16 / 128 + SHAPE),
    "int4 g128 asym": ({"W4A16_ASYM": LINEAR}, 4 + 20 / 128 + SHAPE),
    "int4 per channel asym": (group(ints(4, symmetric=False)), 4 + 20 / 256 + SHAPE),
    "int3 g64": (group(ints(3, 64)), 3 + 16 / 64 + SHAPE),
    "int5 g32 asym": (group(ints(5, 32, symmetric=False)), 5 + 21 / 32 + SHAPE),
    "int7 per channel": (group(ints(7)), 7 + 16 / 256 + SHAPE),
    "int4 g128 in int8": ({"W4AFP8": LINEAR}, 8 + 16 / 128),
    "nvfp4": ({"NVFP4A16": LINEAR}, 4 + 8 / 16 + 32 / 256**2),
    "mxfp4": ({"MXFP4A16": LINEAR}, 4 + 8 / 32),
    "mxfp6": ({"MXFP6A16": LINEAR}, 6 + 8 / 32),
    "mxfp8": ({"MXFP8": LINEAR}, 8 + 8 / 32),
}
# Of each format one is run as well; test_llmcompressor.py runs them all.
RUN = ("fp8 block 128x128", "int8 per channel", "int4 g128 asym", "nvfp4", "mxfp4", "mxfp8")
SERVED = {
    "FP8": {"activations": "fp8 per tensor, static"},
    "FP8_DYNAMIC": {"activations": "fp8 per token, dynamic"},
    "FP8_BLOCK": {"activations": "fp8 g128, dynamic"},
    "W8A8": {"activations": "int8 per token, dynamic"},
    "NVFP4": {"activations": "nvfp4, dynamic"},
    "MXFP4": {"activations": "mxfp4, dynamic"},
    "MXFP8": {"activations": "mxfp8, dynamic"},
    "W4A16": {},
}


@pytest.fixture(scope="module")
def source(tiny_model, tmp_path_factory):
    return one_layer(tiny_model("llama"), tmp_path_factory.mktemp("source") / "one")


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.float()


def dense(path, source, dtype=torch.bfloat16):
    return load_dense(read_existing(path), source, dtype=dtype, device="cpu")


def theirs(path):
    """transformers' own run of a checkpoint, its activations left as they are."""
    from compressed_tensors.quantization import disable_quantization
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.bfloat16, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    return model.eval().apply(disable_quantization)


def owners_weights(path):
    """By layer, what the library's compressor makes of its parts as they are stored."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    stated = json.loads((path / "config.json").read_text())["quantization_config"]
    config, tensors = (
        QuantizationConfig.model_validate(stated),
        load_file(path / "model.safetensors"),
    )
    for name in tensors:
        layer, _, part = name.rpartition(".")
        if part == "weight_scale":
            scheme = scheme_of(config, layer)
            own = {n.rpartition(".")[2]: t for n, t in tensors.items() if n.startswith(layer + ".")}
            compressor = BaseCompressor.get_value_from_registry(scheme.format)
            yield layer, compressor.decompress(own, scheme)["weight"]


@pytest.mark.parametrize("kind", SCHEMES)
def test_every_format_as_its_owner_reads_it(kind, source, tmp_path):
    groups, bits = SCHEMES[kind]
    path = compress(source, tmp_path / "made", groups, ignore=["lm_head"])
    artifact = read_existing(path)
    assert artifact.format == "compressed-tensors"
    weights = CONTAINER.dense_weights(artifact, source, "cpu")
    layers = dict(owners_weights(path))
    assert len(layers) == 7
    original = load_file(source / "model.safetensors")
    for layer, weight in layers.items():
        own = weights[f"{layer}.weight"][...]
        assert own.dtype == torch.float32
        assert torch.equal(own.to(weight.dtype), weight), layer
        # That the codes are those of this layer at all.
        error = (own - original[f"{layer}.weight"].float()).norm() / own.norm()
        assert error < 0.3
    stored = {s.name: s for s in CONTAINER.stored(path)}
    quantized = {name: s for name, s in stored.items() if s.quantized}
    assert quantized.keys() == {f"{layer}.weight" for layer in layers}
    assert {s.type for s in quantized.values()} == {kind}
    square = stored["model.layers.0.self_attn.q_proj.weight"]
    assert square.weights == 256**2
    assert square.bpw == pytest.approx(bits, rel=1e-9)
    assert stored["lm_head.weight"].type == "BF16"
    assert artifact.size.parameters == sum(t.numel() for t in original.values())
    if kind in RUN:
        assert torch.equal(logits(dense(path, source)), logits(theirs(path)))


@pytest.mark.parametrize("preset", SERVED)
def test_what_serving_adds_is_told_apart(preset, tmp_path):
    stated = {"quant_method": "compressed-tensors", "config_groups": {preset: LINEAR}}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": stated}))
    assert CONTAINER.details(tmp_path) == SERVED[preset]


def test_scales_of_activations_and_of_the_cache_are_no_weights(source, tmp_path):
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    path = compress(source, tmp_path / "made", {"FP8": LINEAR}, kv_cache=cache)
    names = load_file(path / "model.safetensors").keys()
    assert {"model.layers.0.self_attn.k_scale", "lm_head.input_scale"} <= names
    artifact = read_existing(path)
    assert artifact.details["kv_cache"] == "fp8 per tensor, static"
    model = dense(path, source)
    assert model.left_out == {}
    assert artifact.size.parameters == sum(p.numel() for p in model.parameters())
    assert torch.equal(logits(model), logits(theirs(path)))


def test_keys_and_values_alone(source, tmp_path):
    """Nothing but the KV cache is quantized: the weights are as they are."""
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    path = compress(source, tmp_path / "made", {}, kv_cache=cache)
    artifact = read_existing(path)
    assert artifact.details == {"kv_cache": "fp8 per tensor, static"}
    assert artifact.size.bpw is None
    plain = load_file(source / "model.safetensors")
    for name, parameter in dense(path, source).named_parameters():
        assert torch.equal(parameter, plain[name]), name


MIXED = {
    "attention": {
        "targets": ["re:.*self_attn.*"],
        "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
        "input_activations": {
            "num_bits": 8, "type": "float", "strategy": "token", "dynamic": True,
        },
    },
    "one": {"targets": ["model.layers.0.self_attn.o_proj"], "weights": ints(8, 64)},
    "rest": {"targets": ["Linear"], "weights": ints(4, 32, symmetric=False)},
}  # fmt: skip


def test_groups_of_layers_by_name_expression_and_class(source, tmp_path):
    path = compress(source, tmp_path / "made", MIXED, ignore=["lm_head", "re:.*down_proj"])
    types = {s.name: s.type for s in CONTAINER.stored(path) if "layers" in s.name}
    assert types["model.layers.0.self_attn.q_proj.weight"] == "fp8 per channel"
    assert types["model.layers.0.self_attn.o_proj.weight"] == "int8 g64"
    assert types["model.layers.0.mlp.up_proj.weight"] == "int4 g32 asym"
    assert types["model.layers.0.mlp.down_proj.weight"] == "BF16"
    assert torch.equal(logits(dense(path, source)), logits(theirs(path)))


@pytest.mark.parametrize("preset", ["W4A16_ASYM", "NVFP4A16"])
def test_experts_of_a_mixture(preset, tiny_model, tmp_path):
    """Stored one by one, and held by the architecture as one tensor of all."""
    source = tiny_model("deepseek_v2")
    path = compress(
        source, tmp_path / "made", {preset: LINEAR}, ignore=["re:.*self_attn.*", "lm_head"]
    )
    stored = load_file(path / "model.safetensors")
    experts = [name for name in stored if ".experts." in name and name.endswith("weight_scale")]
    assert len(experts) == 4 * 3
    weights = CONTAINER.dense_weights(read_existing(path), source, "cpu")
    model = dense(path, source, torch.float32)
    parameters = dict(model.named_parameters())
    prefix = "model.layers.1.mlp.experts."
    for expert in range(4):
        down = weights[f"{prefix}{expert}.down_proj.weight"][...]
        assert torch.equal(parameters[f"{prefix}down_proj"][expert], down)
    assert len({s.type for s in CONTAINER.stored(path) if s.quantized}) == 1
    plain = load_dense(
        Artifact(source, "hf", recognize(source).size(source)),
        source,
        dtype=torch.float32,
        device="cpu",
    )
    ours, reference = (logits(m).log_softmax(-1) for m in (model, plain))
    assert 0 < (reference.exp() * (reference - ours)).sum(-1).mean() < 1


PARTS = {
    "weight_packed": torch.tensor([[0x76543210], [0x0000000F]], dtype=torch.int32),
    "weight_scale": torch.tensor([[1.0, 2.0], [0.5, 1.0]]),
    "weight_shape": torch.tensor([2, 8]),
}
IN_ORDER = [
    [-8.0, -7.0, -6.0, -5.0, -8.0, -6.0, -4.0, -2.0],
    [3.5, -4.0, -4.0, -4.0, -8.0, -8.0, -8.0, -8.0],
]
BY_INDEX = [
    [-8.0, -14.0, -6.0, -10.0, -4.0, -6.0, -2.0, -2.0],
    [3.5, -8.0, -4.0, -8.0, -4.0, -8.0, -4.0, -8.0],
]


@pytest.mark.parametrize(
    ("index", "zero", "expected"),
    [
        (None, None, IN_ORDER),
        ([-1] * 8, None, IN_ORDER),
        ([0, 1] * 4, None, BY_INDEX),
        # Zero points 8 and 9 of the rows' first groups, 7 and 8 of the second, raised by 8.
        ([0, 1] * 4, [[0x98], [0x87]], [
            [-8.0, -12.0, -6.0, -8.0, -4.0, -4.0, -2.0, 0.0],
            [3.0, -8.0, -4.5, -8.0, -4.5, -8.0, -4.5, -8.0],
        ]),
    ],
)  # fmt: skip
def test_the_order_of_activations_that_earlier_versions_stored(tmp_path, index, zero, expected):
    """Two rows of eight 4-bit codes as the packer gives them; 0.20 parses no such configuration."""
    weights = ints(4, 4, symmetric=zero is None, actorder="group")
    settings = {"format": "pack-quantized", "quant_method": "compressed-tensors"}
    settings |= {"config_groups": group(weights)}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    tensors = dict(PARTS)
    if index is not None:
        tensors["weight_g_idx"] = torch.tensor(index, dtype=torch.int32)
    if zero is not None:
        tensors["weight_zero_point"] = torch.tensor(zero, dtype=torch.int32).T.reshape(1, 2)
    own = CONTAINER.dense("x.weight", tensors, CONTAINER.settings(tmp_path))
    assert own.tolist() == expected
