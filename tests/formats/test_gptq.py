"""GPTQ checkpoints of every maker: layers that GPTQModel's own classes pack and read, and bad ones."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.packed import gptqmodel, make_grid, packed_checkpoint, torch_linear
from qsweep.base.errors import ArtifactCorrupt, ConfigError
from qsweep.formats.artifact import Artifact
from qsweep.formats.dense import load_dense
from qsweep.formats.gptq import CONTAINER, pack_gptq
from qsweep.formats.numbers.rounding import round_to_grid
from qsweep.formats.recognize import recognize

NAME = "model.layers.0.mlp.up_proj.weight"


def settings(bits, layout="gptq", **more):
    return {"quant_method": "gptq", "bits": bits, "group_size": 16, "format": layout, **more}


def theirs(grid, bits, layout, pack_dtype=torch.int32, dtype=torch.float16):
    """The layer as GPTQModel packs it in a layout, and the weights that its kernel makes of it."""
    gptqmodel()
    from gptqmodel.quantization import FORMAT
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    outputs, inputs = grid.codes.shape
    module = torch_linear(grid, bits, pack_dtype, format=FORMAT(layout))
    linear = torch.nn.Linear(inputs, outputs, bias=False)
    linear.weight.data = grid.dense(torch.float32)
    g_idx = grid.g_idx
    if g_idx is None:
        g_idx = torch.arange(inputs) // (inputs // grid.scales.shape[1])
    module.pack_original(linear, grid.scales.float(), grid.zeros.float(), g_idx.int())
    module.scales = module.scales.to(dtype)
    module.post_init()
    dense = module.dequantize_weight().T.clone()
    if layout == "gptq":
        known = SimpleNamespace(bits=bits, pack_dtype=pack_dtype)
        convert_gptq_v2_to_v1_format_module(module, known)
    parts = ("qweight", "qzeros", "scales", "g_idx")
    return {part: getattr(module, part).clone() for part in parts}, dense


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", "gptq_p"])
@pytest.mark.parametrize("order", [None, "permuted"])
def test_each_layout_and_width_bit_for_bit(bits, layout, order):
    parts, dense = theirs(make_grid(bits, order=order), bits, layout)
    found = CONTAINER.dense(NAME, parts, settings(bits, layout))
    assert dense.dtype == torch.float16
    assert torch.equal(found.half(), dense)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("pack_dtype", [torch.int8, torch.int16])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
def test_words_of_other_sizes(bits, pack_dtype, layout):
    parts, dense = theirs(make_grid(bits), bits, layout, pack_dtype)
    assert parts["qweight"].dtype == pack_dtype
    found = CONTAINER.dense(NAME, parts, settings(bits, layout))
    assert torch.equal(found.half(), dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scales_of_other_dtypes(dtype):
    parts, dense = theirs(make_grid(4), 4, "gptq", dtype=dtype)
    assert parts["scales"].dtype == dense.dtype == dtype
    assert torch.equal(CONTAINER.dense(NAME, parts, settings(4)).to(dtype), dense)


@pytest.mark.parametrize("group_size", [16, 64])
def test_one_scale_a_row_and_no_g_idx(group_size):
    grid = make_grid(4, group_size=group_size)
    parts = pack_gptq(grid, 4)
    stated = settings(4) | {"group_size": -1 if group_size == 64 else 16}
    for g_idx in ({}, {"g_idx": torch.zeros(64, dtype=torch.int32)}):
        given = {part: parts[part] for part in ("qweight", "qzeros", "scales")} | g_idx
        found = CONTAINER.dense(NAME, given, stated)
        assert torch.equal(found, grid.dense(torch.float32))


@pytest.fixture(scope="module")
def rounded(tiny_model):
    """A miniature and its layers on a grid of 4 bits, asymmetric, 64 inputs a group."""
    source = tiny_model("llama")
    tensors = load_file(source / "model.safetensors")
    names = [n.removesuffix(".weight") for n in tensors if "_proj" in n or n == "lm_head.weight"]
    return source, {
        n: round_to_grid(tensors[f"{n}.weight"].float(), 4, 64, sym=False) for n in names
    }


def packed(grids, bits=4, version=2):
    return {name: pack_gptq(grid, bits, version) for name, grid in grids.items()}


def weights_of(path, source):
    artifact = Artifact(path, "gptq", CONTAINER.size(path))
    model = load_dense(artifact, source, dtype=torch.float32, device="cpu")
    return dict(model.named_parameters())


def test_an_autogptq_directory(rounded, tmp_path):
    """Its names of files, biases of zeros, and a head that is quantized too."""
    source, grids = rounded
    layers = packed(grids)
    for parts in layers.values():
        parts["bias"] = torch.zeros(parts["scales"].shape[1], dtype=torch.float16)
    stated = {"bits": 4, "group_size": 64, "desc_act": True, "sym": False, "true_sequential": True}
    named = {"file": "gptq_model-4bit-64g.safetensors", "beside": "quantize_config.json"}
    stated["checkpoint_format"] = "gptq_v2"
    path = packed_checkpoint(source, tmp_path / "a", layers, stated, **named)
    assert recognize(path) is CONTAINER
    found = weights_of(path, source)
    for name, grid in grids.items():
        assert torch.equal(found[f"{name}.weight"], grid.dense(torch.float32)), name
    types = {t.name: t.type for t in CONTAINER.stored(path)}
    assert types["lm_head.weight"] == "int4 g64 asym act-order"
    # A bias that says something is no part of the model, and so is told.
    layers["lm_head"]["bias"] = torch.ones(4096, dtype=torch.float16)
    path = packed_checkpoint(source, tmp_path / "b", layers, stated, **named)
    with pytest.raises(ArtifactCorrupt, match=r"has no place for it: lm_head\.bias"):
        weights_of(path, source)


def test_layers_of_several_widths(rounded, tmp_path):
    """GPTQModel's dynamic rules: other bits, other groups, a layer left out."""
    source, grids = rounded
    tensors = load_file(source / "model.safetensors")
    wide, kept = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"
    grids = {name: grid for name, grid in grids.items() if name not in ("lm_head", kept)}
    grids[wide] = round_to_grid(tensors[f"{wide}.weight"].float(), 8, 128, sym=True)
    layers = packed(grids) | {wide: pack_gptq(grids[wide], 8, 2)}
    rules = {
        r"+:.*layers\.1\.mlp\.down": {"bits": 8, "group_size": 128, "sym": True},
        r"-:.*layers\.0\.self_attn\.q_proj": {},
    }
    stated = settings(4, "gptq_v2", sym=False, dynamic=rules) | {"group_size": 64}
    path = packed_checkpoint(source, tmp_path, layers, stated)
    stored = {t.name: t for t in CONTAINER.stored(path)}
    assert stored[f"{wide}.weight"].type == "int8 g128 sym"
    assert stored["model.layers.1.mlp.up_proj.weight"].type == "int4 g64 asym"
    assert stored[f"{kept}.weight"].type == "BF16"
    # Codes, float16 scales and zero points by group, and the group of each input.
    count, inputs = 256 * 512, 512
    assert stored[f"{wide}.weight"].weights == count
    assert stored[f"{wide}.weight"].bits == count * 8 + count // 128 * (16 + 8) + inputs * 32
    found = weights_of(path, source)
    for name, grid in grids.items():
        assert torch.equal(found[f"{name}.weight"], grid.dense(torch.float32)), name
    assert torch.equal(found[f"{kept}.weight"], tensors[f"{kept}.weight"].float())
    # A mix whose rules are of another library's names is read by its shapes all the same.
    rules["+:language_model.*"] = rules.pop(r"+:.*layers\.1\.mlp\.down")
    path = packed_checkpoint(source, tmp_path / "other", layers, stated)
    assert {t.name: t.type for t in CONTAINER.stored(path)}[f"{wide}.weight"] == "int8 g128 asym"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": None}, "bits: None; a whole number from 2 to 8"),
        ({"bits": "four"}, "bits: 'four'; a whole number from 2 to 8"),
        ({"bits": 16}, "bits: 16; a whole number from 2 to 8"),
        (
            {"bits": 8},
            r"up_proj: qweight has the shape \[32, 512\], where 8 bits, as stated.*\[64, ",
        ),
    ],
)
def test_what_is_stated_contradicts(rounded, tmp_path, change, message):
    source, grids = rounded
    name = "model.layers.0.mlp.up_proj"
    stated = settings(4, "gptq_v2") | change
    path = packed_checkpoint(source, tmp_path, packed({name: grids[name]}), stated)
    for read in (CONTAINER.size, lambda path: weights_of(path, source)):
        with pytest.raises(ArtifactCorrupt, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"scales": None}, "up_proj has no scales"),
        ({"qzeros": None}, "up_proj has no qzeros"),
        ({"g_idx": torch.full((256,), 7)}, "up_proj: g_idx names group 7, and there are 4"),
        ({"g_idx": torch.full((256,), -1)}, "up_proj: g_idx names group -1, and there are 4"),
        ({"g_idx": torch.zeros(128)}, r"up_proj: qweight has the shape \[32, 512\], where 4 bits"),
        ({"scales": torch.ones(4)}, r"up_proj: scales of the shape \[4\]"),
        ({"scales": torch.ones(3, 512)}, r"up_proj: qzeros has the shape \[4, 64\], where 4 bits"),
    ],
)
def test_layers_that_contradict_themselves(rounded, tmp_path, damage, message):
    source, grids = rounded
    name = "model.layers.0.mlp.up_proj"
    parts = pack_gptq(grids[name], 4, 2)
    for part, tensor in damage.items():
        parts[part] = tensor
    parts = {part: tensor for part, tensor in parts.items() if tensor is not None}
    path = packed_checkpoint(source, tmp_path, {name: parts}, settings(4, "gptq_v2"))
    with pytest.raises(ArtifactCorrupt, match=message) as caught:
        weights_of(path, source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "bitblas"}, "its layout is 'bitblas'; gptq, gptq_v2, gptq_p, marlin are read"),
        ({"format": "marlin_24"}, "its layout is 'marlin_24'"),
        ({"rotation": "hadamard"}, "its inputs are rotated while it runs .rotation: hadamard"),
        ({"quant_method": "gptq_marlin_24"}, "a checkpoint in gptq_marlin_24; those that can be"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, change, message):
    config = {"quantization_config": settings(4) | change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message) as caught:
        recognize(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_never_loaded(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings(4)}))
    (tmp_path / "gptq_model-4bit-128g.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(ConfigError, match="only pickled weights .gptq_model-4bit-128g.bin"):
        CONTAINER.size(tmp_path)
    (tmp_path / "gptq_model-4bit-128g.bin").rename(tmp_path / "llama-7b-4bit.pt")
    with pytest.raises(ConfigError, match="only pickled weights .llama-7b-4bit.pt"):
        CONTAINER.size(tmp_path)


def test_shards_without_an_index_that_transformers_knows(tmp_path):
    """Files in shards with an index of AutoGPTQ's own name."""
    parts = pack_gptq(make_grid(4), 4)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings(4)}))
    for n, part in enumerate(parts):
        tensor = {f"lm_head.{part}": parts[part]}
        save_file(tensor, tmp_path / f"gptq_model-4bit-16g-0000{n + 1}-of-00004.safetensors")
    (found,) = CONTAINER.stored(tmp_path)
    assert (found.type, found.weights) == ("int4 g16 sym", 32 * 64)
