"""compressed-tensors that cannot be read: one line each, which says what, where and why."""

import pytest
import torch

from helpers.compressed import changed, compress, one_layer, write
from helpers.quantized import read_existing
from qsweep.base.errors import ArtifactCorrupt, ConfigError
from qsweep.formats.artifact import Artifact
from qsweep.formats.compressed_tensors import CONTAINER
from qsweep.formats.recognize import recognize

LINEAR = ["Linear"]


def ints(bits, group_size=None, **more):
    return {"num_bits": bits, "type": "int", "symmetric": True, "group_size": group_size, **more}


def group(weights, **more):
    return {"group_0": {"targets": LINEAR, "weights": weights, **more}}


@pytest.fixture(scope="module")
def source(tiny_model, tmp_path_factory):
    return one_layer(tiny_model("llama"), tmp_path_factory.mktemp("source") / "one")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """``made("W4A16")``: the model in that preset, its head as it is; not to be changed."""
    found = {}

    def make(preset):
        if preset not in found:
            path = tmp_path_factory.mktemp(preset) / "made"
            found[preset] = compress(source, path, {preset: LINEAR}, ignore=["lm_head"])
        return found[preset]

    return make


REFUSED = [
    ({"format": "marlin-24"}, "marlin-24: sparse weights are not read"),
    ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask: sparse weights"),
    ({"format": "int4-quantized"}, "format 'int4-quantized'; read are float-quantized, int-"),
    ({"format": "dense"}, "dense: its weights are rounded only while it runs"),
    ({"transform_config": {"config_groups": {"R1": {}}}}, r"rotated while it runs \(transform_config"),
    ({"config_groups": []}, r"not understood \(config_groups"),
    ({"config_groups": {"W9A9": LINEAR}}, "Unknown preset scheme name W9A9"),
    ({"config_groups": group(ints(4, type="complex"))}, "config_groups.group_0.weights.type: "),
    ({"config_groups": group(ints(4, strategy="row"))}, "config_groups.group_0.weights.strategy"),
    ({"config_groups": group(ints(4, 0))}, "config_groups.group_0.weights: "),
    ({"config_groups": group(ints(4), format="x")}, "format 'x'; read are"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "line"), REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(change, line, source, tmp_path):
    stated = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    stated |= {"config_groups": group(ints(4, 128)), **change}
    path = write(source, tmp_path / "made", {}, stated)
    with pytest.raises(ConfigError, match=line) as caught:
        recognize(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_that_are_no_object(source, tmp_path):
    path = write(source, tmp_path / "made", {}, "int4")
    with pytest.raises(ArtifactCorrupt, match="quantization_config cannot be read"):
        recognize(path)


LAYER = "model.layers.0.mlp.up_proj"


def edited(**parts):
    def edit(tensors):
        for part, make in parts.items():
            tensor = make(tensors.pop(f"{LAYER}.{part}", None))
            if tensor is not None:
                tensors[f"{LAYER}.{part}"] = tensor

    return edit


def gone(_):
    return None


DAMAGE = [
    ("W4A16", edited(weight_scale=gone), f"{LAYER} has no weight_scale, which pack-quantized needs"),
    ("W4A16", edited(weight_shape=gone), f"{LAYER} has no weight_shape"),
    ("W4A16_ASYM", edited(weight_zero_point=gone), f"{LAYER} has no weight_zero_point"),
    ("FP8_DYNAMIC", edited(weight_scale=gone), f"{LAYER} has no weight_scale"),
    ("NVFP4A16", edited(weight_global_scale=gone), f"{LAYER} has no weight_global_scale"),
    ("W4A16", edited(weight_packed=gone), f"{LAYER} has no weight_packed, where its codes lie"),
    ("W4A16", edited(weight_scale=lambda t: t[:, :1]), r"weight_scale has the shape \[512, 1\]"),
    ("W4A16", edited(weight_scale=lambda t: t.int()), f"{LAYER}: weight_scale is I32"),
    ("NVFP4A16", edited(weight_scale=lambda t: t.half()), "weight_scale is F16, where F8_E4M3 is"),
    ("MXFP4A16", edited(weight_scale=lambda t: t.float()), "weight_scale is F32, where F8_E8M0 or"),
    ("FP8_BLOCK", edited(weight_scale=lambda t: t.T), r"weight_scale has the shape \[2, 4\], where"),
    ("FP8_DYNAMIC", edited(weight=lambda t: t.float().to(torch.int8)), "weight is I8, where float-"),
    ("FP8_DYNAMIC", edited(weight=lambda t: t.bfloat16()), "weight is BF16, where float-quantized"),
    ("W4A16", edited(weight_packed=lambda t: t[:, :-1]), r"weight_packed of the shape \[512, 31\]"),
    ("W4A16", edited(weight_packed=lambda t: t.to(torch.int16)), "weight_packed is I16, where pack-"),
    ("W4A16", edited(weight_shape=lambda t: t + 8), r"and weight_shape \[520, 264\] ask for"),
    ("W4A16", edited(weight_shape=lambda t: t.float()), "where integers are due"),
    ("W4A16_ASYM", edited(weight_zero_point=lambda t: t[1:]), "weight_zero_point has the shape"),
    ("W4A16", edited(weight_g_idx=lambda _: torch.zeros(3, dtype=torch.int32)), "weight_g_idx has"),
]  # fmt: skip


@pytest.mark.parametrize(("preset", "damage", "line"), DAMAGE)
def test_tensors_that_do_not_belong_together(preset, damage, line, made, source, tmp_path):
    path = changed(made(preset), tmp_path / "damaged", damage)
    artifact = Artifact(path, CONTAINER.name, CONTAINER.size(made(preset)))
    for read in (CONTAINER.stored, lambda _: CONTAINER.dense_weights(artifact, source, "cpu")):
        with pytest.raises((ArtifactCorrupt, ConfigError), match=line) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_format_that_contradicts_the_tensors(made, tmp_path):
    def repack(stated):
        stated["config_groups"]["W8A8"]["format"] = "pack-quantized"

    path = changed(made("W8A8"), tmp_path / "made", config=repack)
    with pytest.raises(ArtifactCorrupt, match="has no weight_packed, where its codes lie in pack-"):
        read_existing(path)


def test_a_layer_that_no_group_has(source, tmp_path):
    def forget(stated):
        del stated["config_groups"]["rest"]

    groups = {
        "one": {"targets": ["re:.*self_attn.*"], "weights": ints(8, 64)},
        "rest": {"targets": ["re:.*mlp.*"], "weights": ints(4, 32)},
        "two": {"targets": ["re:.*lm_head"], "weights": ints(4, 64)},
    }
    whole = compress(source, tmp_path / "whole", groups)
    path = changed(whole, tmp_path / "made", config=forget)
    with pytest.raises(ArtifactCorrupt, match="mlp.*is quantized, and no target of config_groups"):
        read_existing(path)


def test_a_truncated_file(made, tmp_path):
    path = changed(made("W4A16"), tmp_path / "made")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactCorrupt, match="not a whole safetensors file"):
        read_existing(path)
