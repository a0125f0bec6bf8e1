"""AutoRound's own checkpoints are read by the container whose layout they have."""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers.compressed import compress, write
from helpers.quantized import read_existing
from qsweep.base.errors import ConfigError
from qsweep.formats.auto_round import translated
from qsweep.formats.compressed_tensors import CONTAINER
from qsweep.formats.container import container
from qsweep.formats.recognize import recognize
from qsweep.formats.weights import quantization_settings
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.rtn import RTN

INT4 = {"bits": 4, "group_size": 64, "sym": True, "data_type": "int", "quant_method": "auto-round"}
MXFP4 = {
    "bits": 4, "group_size": 32, "sym": True, "data_type": "mx_fp", "act_bits": 4,
    "act_data_type": "mx_fp", "act_dynamic": True, "act_group_size": 32, "act_sym": True,
}  # fmt: skip
NVFP4 = MXFP4 | {
    "group_size": 16, "data_type": "nv_fp", "act_data_type": "nv_fp4_with_static_gs",
    "act_group_size": 16,
}  # fmt: skip
FP8 = MXFP4 | {
    "bits": 8, "group_size": -1, "data_type": "fp", "act_bits": 8, "act_data_type": "fp",
    "act_dynamic": False, "act_group_size": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tiny_model):
    return tiny_model("llama")


@pytest.mark.parametrize(
    ("packing", "method", "more"),
    [
        ("auto_round:auto_gptq", "gptq", {"checkpoint_format": "gptq"}),
        ("auto_round:gptq", "gptq", {"checkpoint_format": "gptq"}),
        ("auto_round", "gptq", {"checkpoint_format": "gptq_v2"}),
        ("auto_round:gptqmodel", "gptq", {"checkpoint_format": "gptq_v2"}),
        ("auto_round:auto_awq", "awq", {"version": "gemm", "zero_point": False}),
        (None, "gptq", {"checkpoint_format": "gptq"}),
    ],
)
def test_packings_of_integers(packing, method, more, source, tmp_path):
    stated = INT4 | ({} if packing is None else {"packing_format": packing})
    path = write(source, tmp_path / "made", {}, stated)
    assert recognize(path).name == method
    assert quantization_settings(path).items() >= {**more, "bits": 4, "group_size": 64}.items()


@pytest.mark.parametrize(
    ("sym", "packing"), [(True, "auto_round:auto_gptq"), (False, "auto_round")]
)
def test_integers_are_read_as_the_same_numbers_elsewhere(sym, packing, source, tmp_path):
    """Zero points are stored less 1 by one of the two packings."""
    (tmp_path / "rtn").mkdir()
    model = SourceModel(read_facts(source, "x"), "cpu")
    other = RTN(bits=4, group_size=64, sym=sym).quantize(model, None, tmp_path / "rtn")
    tensors = load_file(other.path / "model.safetensors")
    path = write(source, tmp_path / "made", tensors, INT4 | {"sym": sym, "packing_format": packing})
    artifact, gptq = read_existing(path), container("gptq")
    assert artifact.size == other.size
    own, same = (gptq.dense_weights(a, source, "cpu") for a in (artifact, other))
    assert own.keys() == same.keys()
    assert all(torch.equal(own[name][...], same[name][...]) for name in own)


@pytest.mark.parametrize(
    ("preset", "stated", "kind", "activations"),
    [
        ("MXFP4", MXFP4, "mxfp4", "mxfp4, dynamic"),
        ("NVFP4A16", NVFP4, "nvfp4", "nvfp4, dynamic"),
        ("MXFP8", MXFP4 | {"bits": 8, "act_bits": 8}, "mxfp8", "mxfp8, dynamic"),
        ("FP8_DYNAMIC", FP8, "fp8 per channel", "fp8 per tensor, static"),
        ("W4A16", INT4 | {"group_size": 128, "act_bits": 16}, "int4 g128", None),
    ],
)
def test_floats_are_read_as_the_same_numbers_elsewhere(
    preset, stated, kind, activations, source, tmp_path
):
    other = compress(source, tmp_path / "other", {preset: ["Linear"]}, ignore=["lm_head"])
    packing = "auto_round:fp8_static" if stated is FP8 else "auto_round:llm_compressor"
    own = {**stated, "quant_method": "auto-round", "packing_format": packing}
    tensors = load_file(other / "model.safetensors")
    if stated is FP8:
        # A scale per channel lies as [out] there.
        tensors = {n: t.flatten() if n.endswith("_scale") else t for n, t in tensors.items()}
    path = write(source, tmp_path / "made", tensors, own)
    artifact = read_existing(path)
    assert artifact.format == "compressed-tensors"
    assert artifact.details.get("activations") == activations
    assert {s.type for s in CONTAINER.stored(path) if s.quantized} == {kind}
    found, same = (
        CONTAINER.dense_weights(a, source, "cpu") for a in (artifact, read_existing(other))
    )
    assert found.keys() == same.keys()
    assert all(torch.equal(found[name][...], same[name][...]) for name in found)


def test_blocks_of_fp8_are_fine_grained_fp8():
    stated = FP8 | {"quant_method": "auto-round", "packing_format": "auto_round:fp8"}
    stated |= {"weight_block_size": [128, 128], "group_size": [128, 128]}
    assert translated(stated)["quant_method"] == "fp8"


@pytest.mark.parametrize("packing", ["auto_round:mlx", "auto_round:llm_compressor_nvfp4_e5m3"])
def test_a_packing_that_nobody_reads_is_refused_by_name(packing, source, tmp_path):
    path = write(source, tmp_path / "made", {}, INT4 | {"packing_format": packing})
    with pytest.raises(ConfigError, match=f"a checkpoint in auto-round, packed as {packing}; "):
        recognize(path)


def test_others_are_left_alone():
    stated = {"quant_method": "awq", "packing_format": "auto_round:auto_gptq"}
    assert translated(stated) == stated
    assert json.loads(json.dumps(translated(INT4)))["quant_method"] == "gptq"
