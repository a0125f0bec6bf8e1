"""AWQ checkpoints in every layout, packed by GPTQModel's and AutoAWQ's own classes, and bad ones."""

import hashlib
import json
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.environments import require_environment
from helpers.packed import gptqmodel, make_grid, packed_checkpoint
from qsweep.base.errors import ArtifactCorrupt, ConfigError
from qsweep.formats.artifact import Artifact
from qsweep.formats.awq import CONTAINER, pack_awq
from qsweep.formats.dense import load_dense
from qsweep.formats.gptq import CONTAINER as GPTQ_CONTAINER
from qsweep.formats.marlin import pack_marlin, unpack_marlin
from qsweep.formats.numbers.rounding import round_to_grid
from qsweep.formats.packing import QuantizedMatrix
from qsweep.formats.recognize import recognize

NAME = "model.layers.0.mlp.up_proj.weight"


def settings(version, group_size, **more):
    stated = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True}
    return {**stated, "version": version, **more}


def dense_of(grid, version):
    """The weights that a layout can hold of a grid: ``gemv_fast`` rounds scaled zero points."""
    if version not in ("gemv_fast", "llm-awq"):
        return grid.dense(torch.float32)
    rows, groups = grid.scales.shape
    zeros = -(grid.scales * grid.zeros.float()).half()
    codes = grid.codes.reshape(rows, groups, -1).float()
    products = codes * grid.scales[..., None].float() + zeros[..., None].float()
    return products.reshape(grid.codes.shape)


@pytest.mark.parametrize(
    ("version", "group_size"),
    [
        *[("gemv", size) for size in (64, 128)],
        *[("gemv_fast", size) for size in (16, 32, 64, 128, 256)],
        *[("llm-awq", size) for size in (64, 128)],
    ],
)
def test_what_gptqmodel_packs_bit_for_bit(version, group_size):
    gptqmodel()
    from gptqmodel.nn_modules.qlinear.gemv_awq import AwqGEMVLinear
    from gptqmodel.nn_modules.qlinear.gemv_fast_awq import AwqGEMVFastLinear, LLMAwqLinear

    kind = {"gemv": AwqGEMVLinear, "gemv_fast": AwqGEMVFastLinear, "llm-awq": LLMAwqLinear}[version]
    grid = make_grid(4, outputs=64, inputs=256, group_size=group_size)
    linear = torch.nn.Linear(256, 64, bias=False)
    linear.weight.data = grid.dense(torch.float32)
    module = kind(
        bits=4,
        group_size=group_size,
        sym=False,
        desc_act=False,
        in_features=256,
        out_features=64,
        pack_dtype=torch.int32 if version == "gemv" else torch.int16,
    )
    module.pack(linear, grid.scales, grid.zeros)
    stated = settings(version, -1 if group_size == 256 else group_size)
    found = CONTAINER.dense(NAME, dict(module.state_dict()), stated)
    assert torch.equal(found, dense_of(grid, version))


@pytest.mark.parametrize("version", ["GEMM", "exllama", None])
def test_names_of_kernels_that_read_gemm(version):
    grid = make_grid(4)
    stated = settings(version, 16)
    assert torch.equal(CONTAINER.dense(NAME, pack_awq(grid, 4), stated), grid.dense(torch.float32))


def pattern(groups):
    """A symmetric grid that needs no generator of random numbers."""
    codes = (torch.arange(128 * 256) * 7919 // 13 % 16).reshape(128, 256).to(torch.uint8)
    scales = ((torch.arange(128 * groups) % 1021 + 1) / 2**14).reshape(128, -1).half()
    return QuantizedMatrix(codes, torch.full_like(scales, 8, dtype=torch.uint8), scales)


# Of the words and scales that AutoAWQ 0.2.9's WQLinear_Marlin.from_linear makes of these grids; the
# code is that of AutoGPTQ's, and of Marlin's authors.
@pytest.mark.parametrize(
    ("groups", "digest"),
    [
        (4, "70c3a11724bf637e8b3a20d881921aa183fc33b6b65de27fae3cf78bbbec8cfb"),
        (1, "294a7ee7e7b911fa38aecf478dfe4b5ea826630b4b55d7f71d9916bdebb893a1"),
    ],
)
def test_marlin_as_its_makers_pack_it(groups, digest):
    grid = pattern(groups)
    words, scales = pack_marlin(grid)
    made = hashlib.sha256(words.numpy().tobytes() + scales.numpy().tobytes()).hexdigest()
    assert made == digest
    found = unpack_marlin(words, scales)
    assert torch.equal(found.codes, grid.codes)
    assert torch.equal(found.dense(torch.float32), grid.dense(torch.float32))


@pytest.fixture(scope="module")
def rounded(tiny_model):
    """A miniature and its layers on a symmetric grid of 4 bits, 128 inputs a group."""
    source = tiny_model("llama")
    tensors = load_file(source / "model.safetensors")
    names = [n.removesuffix(".weight") for n in tensors if "_proj" in n]
    return source, {
        n: round_to_grid(tensors[f"{n}.weight"].float(), 4, 128, sym=True) for n in names
    }


@pytest.mark.parametrize(
    ("container", "names", "stated"),
    [
        (GPTQ_CONTAINER, ("B", "s"), {"quant_method": "gptq", "checkpoint_format": "marlin"}),
        (GPTQ_CONTAINER, ("B", "s"), {"quant_method": "gptq", "is_marlin_format": True}),
        (GPTQ_CONTAINER, ("B", "s"), {"quant_method": "marlin"}),
        (CONTAINER, ("qweight", "scales"), {"quant_method": "awq", "version": "marlin"}),
    ],
)
def test_checkpoints_in_marlins_layout(rounded, tmp_path, container, names, stated):
    source, grids = rounded
    layers = {
        layer: dict(zip(names, pack_marlin(grid), strict=True)) for layer, grid in grids.items()
    }
    if "B" in names:
        for parts in layers.values():
            parts["workspace"] = torch.zeros(16, dtype=torch.int32)
    stated = {**stated, "bits": 4, "group_size": 128, "zero_point": False}
    path = packed_checkpoint(source, tmp_path, layers, stated)
    assert recognize(path) is container
    assert {t.type for t in container.stored(path) if t.quantized} == {"int4 g128 sym"}
    artifact = Artifact(path, container.name, container.size(path))
    model = load_dense(artifact, source, dtype=torch.float32, device="cpu")
    for name, grid in grids.items():
        assert torch.equal(model.get_submodule(name).weight, grid.dense(torch.float32)), name


def test_autoawqs_file_of_settings(rounded, tmp_path):
    """A quant_config.json alone, in AutoAWQ's own words, and modules that stay as they are."""
    source, grids = rounded
    kept = "model.layers.1.mlp.down_proj"
    layers = {name: pack_awq(grid, 4) for name, grid in grids.items() if name != kept}
    stated = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
    stated["modules_to_not_convert"] = [kept]
    path = packed_checkpoint(source, tmp_path, layers, stated, beside="quant_config.json")
    assert recognize(path) is CONTAINER
    types = {t.name: t.type for t in CONTAINER.stored(path)}
    assert types[f"{kept}.weight"] == "BF16"
    assert types["model.layers.0.mlp.down_proj.weight"] == "int4 g128 asym"
    assert CONTAINER.size(path).bpw == 4 + 20 / 128


@pytest.mark.parametrize(
    ("change", "damage", "message"),
    [
        ({"bits": True}, {}, "bits: True; a whole number from 2 to 8"),
        ({"bits": 8}, {}, r"up_proj: qweight has the shape \[256, 64\], where 8 bits, as stated"),
        ({}, {"qzeros": None}, "up_proj has no qzeros"),
        ({}, {"scales": torch.ones(3, 512)}, "up_proj: qzeros has the shape"),
        ({"version": "marlin"}, {}, "up_proj: qweight has the shape"),
        ({"version": "gemv"}, {}, "up_proj: qzeros has the shape|do not divide"),
        ({"version": "gemv", "group_size": 96}, {}, "groups of 96, as stated, do not divide"),
        ({"version": "gemv_fast"}, {}, "up_proj: qweight of 64 words of 32 bits"),
    ],
)
def test_layers_that_contradict_themselves(rounded, tmp_path, change, damage, message):
    source, grids = rounded
    name = "model.layers.0.mlp.up_proj"
    parts = pack_awq(grids[name], 4) | damage
    parts = {part: tensor for part, tensor in parts.items() if tensor is not None}
    path = packed_checkpoint(source, tmp_path, {name: parts}, settings("gemm", 128) | change)
    with pytest.raises(ArtifactCorrupt, match=message) as caught:
        CONTAINER.size(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_layout_that_nobody_knows(tmp_path):
    config = {"quantization_config": settings("bitblas", 128)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="its layout is 'bitblas'; gemm, exllama, .* are read"):
        recognize(tmp_path)


# Run by the interpreter of AutoAWQ's environment: grids by their number of groups into its layers.
PACK = """
import sys, torch
from awq.modules.linear.gemm import WQLinear_GEMM
from awq.modules.linear.gemv import WQLinear_GEMV
from awq.modules.linear.gemv_fast import WQLinear_GEMVFast
from awq.modules.linear.marlin import WQLinear_Marlin
from safetensors.torch import load_file, save_file
given, made = load_file(sys.argv[1]), {}
kinds = {"gemm": WQLinear_GEMM, "gemv": WQLinear_GEMV, "gemv_fast": WQLinear_GEMVFast}
for name, kind in {**kinds, "marlin": WQLinear_Marlin}.items():
    for size in (64, 128, 256):
        scales, zeros = given[f"{name}.{size}.scales"], given[f"{name}.{size}.zeros"].int()
        codes = given[f"{name}.{size}.codes"].reshape(128, -1, size).float()
        weight = (codes - zeros[..., None]) * scales[..., None].float()
        linear = torch.nn.Linear(256, 128, bias=False).half()
        linear.weight.data = weight.reshape(128, 256).half()
        if name == "gemm":
            scales, zeros = scales.T.contiguous(), zeros.T.contiguous()
        zeros = None if name == "marlin" else zeros
        layer = kind.from_linear(linear, 4, size, scales=scales, zeros=zeros)
        made |= {f"{name}.{size}.{part}": t.contiguous() for part, t in layer.state_dict().items()}
save_file(made, sys.argv[2])
"""


@pytest.mark.env
def test_what_autoawq_packs_bit_for_bit(tmp_path):
    python = require_environment("autoawq").interpreter("autoawq")
    grids = {
        f"{version}.{size}": make_grid(4, outputs=128, inputs=256, group_size=size)
        for version in ("gemm", "gemv", "gemv_fast", "marlin")
        for size in (64, 128, 256)
    }
    for name, grid in grids.items():
        if name.startswith("marlin"):
            grid.zeros.fill_(8)
    parts = ("codes", "zeros", "scales")
    given = {f"{n}.{p}": getattr(grid, p).clone() for n, grid in grids.items() for p in parts}
    save_file(given, tmp_path / "given.safetensors")
    (tmp_path / "pack.py").write_text(PACK)
    files = [tmp_path / name for name in ("pack.py", "given.safetensors", "made.safetensors")]
    subprocess.run([str(python), *map(str, files)], check=True, capture_output=True)
    made = load_file(files[2])
    for name, grid in grids.items():
        version, size = name.split(".")
        layer = {k.rpartition(".")[2]: t for k, t in made.items() if k.startswith(f"{name}.")}
        found = CONTAINER.dense(NAME, layer, settings(version, int(size)))
        assert torch.equal(found, dense_of(grid, version)), name
        if version == "marlin":
            assert torch.equal(pack_marlin(grid)[0], layer["qweight"])
