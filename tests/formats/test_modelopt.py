"""ModelOpt's layouts, each against its definition written out number by number."""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers.compressed import compress, write
from helpers.quantized import read_existing
from qsweep.base.errors import ArtifactCorrupt, ConfigError
from qsweep.evaluate.activations import quantized
from qsweep.formats.activations import NotSimulated
from qsweep.formats.compressed_tensors import CONTAINER as COMPRESSED
from qsweep.formats.dense import load_dense
from qsweep.formats.modelopt import CONTAINER
from qsweep.formats.recognize import recognize
from qsweep.models.safetensors_header import read_header

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
OUT, IN = 8, 64
FP8 = torch.float8_e4m3fn


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_bytes(*shape, low=0, high=256, seed=0):
    found = torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))
    return found.to(torch.uint8)


def e2m1(code):
    return -E2M1[code & 7] if code & 8 else E2M1[code & 7]


def signed(code):
    return code - 16 if code > 7 else code


CODES8, PAIRS = random(OUT, IN).to(FP8), some_bytes(OUT, IN // 2)
INT8 = some_bytes(OUT, IN).view(torch.int8)
PER_ROW = random(OUT).abs()
SCALES16 = random(OUT, IN // 16).abs().to(FP8)
EXPONENTS = some_bytes(OUT, IN // 32, low=110, high=130)
BLOCKS = random(2, 1, 4, 1).abs()
NIBBLES, GROUPS = some_bytes(OUT // 2, IN, seed=1), random(OUT, 2).abs()
BEFORE = random(IN).abs().bfloat16()
TWO = {"weight_scale_2": torch.tensor(0.037)}

# By name: the tensors, what a table of types shows, and one weight of row r and column c.
LAYOUTS = {
    "fp8": (
        {"weight": CODES8, "weight_scale": torch.tensor(0.02)},
        "fp8 per tensor",
        lambda r, c: float(CODES8[r, c]) * 0.02,
    ),
    "fp8 rows": (
        {"weight": CODES8, "weight_scale": PER_ROW},
        "fp8 per channel",
        lambda r, c: float(CODES8[r, c]) * float(PER_ROW[r]),
    ),
    "fp8 blocks": (
        {"weight": CODES8, "weight_scale": BLOCKS},
        "fp8 block 4x16",
        lambda r, c: float(CODES8[r, c]) * float(BLOCKS[r // 4, 0, c // 16, 0]),
    ),
    "int8": (
        {"weight": INT8, "weight_scale": PER_ROW, "pre_quant_scale": BEFORE},
        "int8 per channel",
        lambda r, c: float(INT8[r, c]) * float(PER_ROW[r]) * float(BEFORE[c]),
    ),
    "mxfp8": (
        {"weight": CODES8, "weight_scale": EXPONENTS},
        "mxfp8",
        lambda r, c: float(CODES8[r, c]) * 2.0 ** (int(EXPONENTS[r, c // 32]) - 127),
    ),
    "mxfp4": (
        {"weight": PAIRS, "weight_scale": EXPONENTS},
        "mxfp4",
        lambda r, c: (
            e2m1(int(PAIRS[r, c // 2]) >> (4 * (c % 2)) & 15)
            * 2.0 ** (int(EXPONENTS[r, c // 32]) - 127)
        ),
    ),
    "nvfp4": (
        {"weight": PAIRS, "weight_scale": SCALES16, **TWO},
        "nvfp4",
        lambda r, c: (
            e2m1(int(PAIRS[r, c // 2]) >> (4 * (c % 2)) & 15) * float(SCALES16[r, c // 16]) * 0.037
        ),
    ),
    "int4": (
        {"weight": NIBBLES, "weight_scale": GROUPS, "pre_quant_scale": BEFORE},
        "int4 g32",
        lambda r, c: (
            signed(int(NIBBLES[r // 2, c]) >> (4 * (r % 2)) & 15)
            * float(GROUPS[r, c // 32])
            * float(BEFORE[c])
        ),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_by_its_definition(layout, tmp_path):
    tensors, kind, weight = LAYOUTS[layout]
    found = CONTAINER.dense("x.weight", tensors, {})
    assert found.dtype == torch.float32
    expected = torch.tensor([[weight(r, c) for c in range(IN)] for r in range(OUT)])
    torch.testing.assert_close(found, expected, rtol=3e-7, atol=0)
    from safetensors.torch import save_file

    save_file(dict(tensors), tmp_path / "x.safetensors")
    headers = read_header(tmp_path / "x.safetensors")
    assert CONTAINER.describe("x.weight", headers, {}) == (kind, OUT * IN)


@pytest.fixture(scope="module")
def source(tiny_model):
    return tiny_model("llama")


STATED = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}


@pytest.fixture(scope="module")
def nvfp4(source, tmp_path_factory):
    """The same numbers twice: in compressed-tensors, and in ModelOpt's names with a KV cache."""
    folder = tmp_path_factory.mktemp("nvfp4")
    other = compress(source, folder / "other", {"NVFP4A16": ["Linear"]}, ignore=["lm_head"])
    tensors = {}
    for name, tensor in load_file(other / "model.safetensors").items():
        layer, _, part = name.rpartition(".")
        if part == "weight_packed":
            tensors |= {f"{layer}.weight": tensor, f"{layer}.input_scale": torch.tensor(0.1)}
            if layer.endswith("k_proj"):
                tensors[f"{layer}.k_scale"] = torch.tensor(1.0)
        elif part == "weight_global_scale":
            tensors[f"{layer}.weight_scale_2"] = (1 / tensor).reshape(())
        else:
            tensors[name] = tensor
    cache = {"kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"}}
    return other, write(source, folder / "made", tensors, {**STATED, **cache})


def test_a_checkpoint_is_read_as_the_same_numbers_elsewhere(nvfp4, source):
    other, path = nvfp4
    artifact = read_existing(path)
    assert artifact.format == "modelopt"
    assert artifact.details == {
        "activations": "nvfp4, dynamic",
        "kv_cache": "fp8 per tensor, static",
    }
    assert artifact.size.bpw == read_existing(other).size.bpw
    assert artifact.size.parameters == read_existing(other).size.parameters
    same = COMPRESSED.dense_weights(read_existing(other), source, "cpu")
    own = CONTAINER.dense_weights(artifact, source, "cpu")
    assert own.keys() == same.keys()
    for name, weight in own.items():
        torch.testing.assert_close(weight[...], same[name][...], rtol=3e-7, atol=0)
    model = load_dense(artifact, source, dtype=torch.float32, device="cpu")
    assert model.left_out == {}
    weight = own["model.layers.1.mlp.up_proj.weight"][...]
    assert torch.equal(model.get_submodule("model.layers.1.mlp.up_proj").weight, weight)


def test_settings_in_a_file_of_their_own(nvfp4, source, tmp_path):
    path = write(source, tmp_path / "made", load_file(nvfp4[1] / "model.safetensors"), None)
    inner = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    content = {"producer": {"name": "modelopt"}, "quantization": inner}
    (path / "hf_quant_config.json").write_text(json.dumps(content))
    assert read_existing(path).details == read_existing(nvfp4[1]).details
    assert {s.type for s in CONTAINER.stored(path) if s.quantized} == {"nvfp4"}


@pytest.mark.parametrize(
    ("algorithm", "line"),
    [
        ("W4A8_AWQ", "quant_algo W4A8_AWQ: its weights are rounded a second time"),
        ("NVFP4_SVD", "quant_algo NVFP4_SVD: it adds a matrix of low rank"),
        ("FP3", "quant_algo 'FP3'; read are FP8, "),
    ],
)
def test_numbers_that_cannot_be_read(algorithm, line, source, tmp_path):
    path = write(source, tmp_path / "made", {}, STATED | {"quant_algo": algorithm})
    with pytest.raises(ConfigError, match=line):
        recognize(path)
    layers = {"x": {"quant_algo": "FP8"}, "y": {"quant_algo": algorithm}}
    mixed = STATED | {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    with pytest.raises(ConfigError, match=line):
        recognize(write(source, tmp_path / "mixed", {}, mixed))


def test_stacks_of_experts_are_told(source, tmp_path):
    # As it writes Llama 4's: packed along the inputs, which lie in the middle.
    stack = "model.layers.1.feed_forward.experts.gate_up_proj"
    tensors = {
        stack: some_bytes(2, 32, 64),
        f"{stack}_weight_scale": torch.ones(2, 4, 64).to(FP8),
        f"{stack}_weight_scale_2": torch.tensor(0.02),
    }
    path = write(source, tmp_path / "made", tensors, STATED | {"quant_algo": "NVFP4"})
    with pytest.raises(ConfigError, match=f"quantized as a stack, first {stack}; read are single"):
        recognize(path)


LAYER = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("part", "make", "line"),
    [
        ("weight_scale", None, f"{LAYER} has no weight_scale"),
        ("weight", None, f"{LAYER} has no weight"),
        ("weight_scale_2", None, f"{LAYER} has no weight_scale_2"),
        ("weight_scale", lambda t: t[:, 1:], r"weight_scale has the shape \[512, 15\], where"),
        ("weight_scale_2", lambda t: t.repeat(2), r"weight_scale_2 has the shape \[2\]"),
        ("weight_scale_2", lambda t: t.int(), "weight_scale_2 is I32, where"),
        ("weight", lambda t: t.int(), "weight is I32, which has no scales"),
        ("weight_scale", lambda t: t.float()[:, :7], "7 scales a row do not divide its 128 inputs"),
        ("pre_quant_scale", lambda t: torch.ones(7), r"pre_quant_scale has the shape \[7\]"),
    ],
)
def test_tensors_that_do_not_belong_together(part, make, line, nvfp4, source, tmp_path):
    tensors = load_file(nvfp4[1] / "model.safetensors")
    tensor = tensors.pop(f"{LAYER}.{part}", None)
    if make is not None:
        tensors[f"{LAYER}.{part}"] = make(tensor)
    path = write(source, tmp_path / "made", tensors, STATED)
    with pytest.raises(ArtifactCorrupt, match=line) as caught:
        read_existing(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_activations_of_nvfp4_are_those_of_compressed_tensors(nvfp4, source, tmp_path):
    other, path = nvfp4
    assert CONTAINER.quantizes_activations(path)
    layers = CONTAINER.layer_activations(path)
    assert len(layers) == 14
    ours = layers[LAYER].inputs
    assert ours.global_scale.item() == pytest.approx(1 / 0.1)
    largest = dict.fromkeys(layers, 448 * 6 * 0.1)
    stated = compress(source, tmp_path / "same", {"NVFP4": ["Linear"]}, ["lm_head"], None, largest)
    theirs = COMPRESSED.layer_activations(stated)[LAYER].inputs
    values = random(3, 256, seed=5)
    torch.testing.assert_close(quantized(values, ours), quantized(values, theirs))
    assert not torch.equal(quantized(values, ours), values)
    assert not COMPRESSED.quantizes_activations(other)
    assert COMPRESSED.layer_activations(other) == {}


def activations(source, out, algorithm, tensors=(), **stated):
    """What is done to the inputs of a layer whose weights are FP8 under such an algorithm."""
    weights = {"weight": random(8, 64).to(FP8), "weight_scale": torch.tensor(0.02), **dict(tensors)}
    weights = {f"{LAYER}.{name}": tensor for name, tensor in weights.items()}
    path = write(source, out, weights, STATED | {"quant_algo": algorithm, **stated})
    return CONTAINER.layer_activations(path)


def test_activations_by_algorithm_and_layer(source, tmp_path):
    scale = {"input_scale": torch.tensor(0.5), "pre_quant_scale": torch.full((64,), 2.0)}
    made = activations(source, tmp_path / "fp8", "FP8", scale)[LAYER].inputs
    # 0.8 is 1.6, that is 3.2 half units, of which FP8 has 3.25.
    assert quantized(torch.full((1, 64), 0.8), made)[0, 0] == 3.25 / 4
    per_token = activations(source, tmp_path / "token", "FP8_PER_CHANNEL_PER_TOKEN")[LAYER].inputs
    values = torch.linspace(0, 44.8, 64)[None]
    expected = (values / 0.1).to(FP8).float() * 0.1
    torch.testing.assert_close(quantized(values, per_token), expected)
    assert activations(source, tmp_path / "none", "W4A16_NVFP4") == {}
    mixed = {"quantized_layers": {LAYER: {"quant_algo": "MXFP8"}}}
    found = activations(source, tmp_path / "mixed", "MIXED_PRECISION", **mixed)[LAYER].inputs
    assert (found.args.group_size, found.args.num_bits, found.args.dynamic) == (32, 8, True)
    with pytest.raises(NotSimulated, match=f"{LAYER}: quantized_layers says not"):
        activations(source, tmp_path / "unsaid", "MIXED_PRECISION", quantized_layers={})
    with pytest.raises(ArtifactCorrupt, match=f"lacking: {LAYER} has no input_scale"):
        activations(source, tmp_path / "lacking", "FP8")
