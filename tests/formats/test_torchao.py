"""torchao checkpoints that transformers saved, against their own tensors and run."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.quantized import by_transformers, change, dense, logits, refused
from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.recognize import recognize

pytest.importorskip("torchao", reason='pip install "qsweep[torchao]"')

Q = "model.layers.0.self_attn.q_proj"


def settings(kind):
    from torchao.prototype.mx_formats import (
        MXDynamicActivationMXWeightConfig,
        NVFP4WeightOnlyConfig,
    )
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8DynamicActivationIntxWeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerGroup,
    )
    from transformers import TorchAoConfig

    return TorchAoConfig(
        {
            "int8": Int8WeightOnlyConfig,
            "int8-dynamic": Int8DynamicActivationInt8WeightConfig,
            "float8": Float8WeightOnlyConfig,
            "int3": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=PerGroup(32)),
            "int4-dynamic": lambda: Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4),
            "mxfp8": MXDynamicActivationMXWeightConfig,
            "nvfp4": NVFP4WeightOnlyConfig,
        }[kind]()
    )


# What its layers are called, their bits (an "int3" of torchao's is stored in 8), and how far
# transformers' own run in bfloat16 is from the dense one, as a share of the largest logit. That of
# MX does not run on a CPU.
@pytest.mark.parametrize(
    ("kind", "called", "bpw", "floor"),
    [
        ("int8", "int8 channel", 8.15, 0.03),
        ("int8-dynamic", "int8 channel", 8.15, 0.06),
        ("float8", "fp8 channel", 8.1, 0.03),
        ("int3", "int3 g32", 8.75, 0.03),
        ("int4-dynamic", "int4 g32", 8.75, 0.06),
        ("mxfp8", "mxfp8 g32", 8.25, None),
        ("nvfp4", "nvfp4 g16", 4.5, 0.03),
    ],
)
def test_every_weight_is_the_owners(tiny_model, tmp_path, kind, called, bpw, floor):
    source, path = tiny_model("llama"), tmp_path / kind
    model = by_transformers(source, path, settings(kind))
    ours = dense(path, source)
    container = recognize(path)
    assert container.name == "torchao"
    assert {t.type for t in container.stored(path) if t.quantized} == {called}
    assert container.size(path).bpw == pytest.approx(bpw, abs=0.1)
    for name, parameter in ours.named_parameters():
        if "_proj" in name:
            owners = model.get_parameter(name).dequantize().float()
            assert torch.equal(parameter, owners), name
    if floor is not None:
        run = logits(model)
        difference = (logits(dense(path, source, torch.bfloat16)) - run).abs().max()
        assert difference < floor * run.abs().max()


def restate(path, edit):
    """Edit what a header says of one tensor."""
    file = path / "model.safetensors"
    with safe_open(file, framework="pt") as handle:
        metadata = handle.metadata()
    edit(metadata)
    save_file(load_file(file), file, metadata=metadata)


def say(text):
    return lambda metadata: metadata.update({f"{Q}.weight": text})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda metadata: metadata.pop(f"{Q}.weight"), "header does not say what it is"),
        (say("no JSON"), "q_proj.weight cannot be read"),
        (say('{"_type": "Tensor"}'), "header says that it is"),
        (say('{"_type": "Int8Tensor"}'), "does not say which parts it has"),
        (
            say(json.dumps({"_type": "Int8Tensor", "_data": {}, "_tensor_data_names": ["qdata"]})),
            "q_proj.weight cannot be read",
        ),
    ],
)
def test_what_a_header_says_is_checked(tiny_model, tmp_path, edit, said):
    source, path = tiny_model("llama"), tmp_path / "int8"
    by_transformers(source, path, settings("int8"))
    restate(path, edit)
    refused(path, source, said)


def test_damage_is_one_line(tiny_model, tmp_path):
    source, path = tiny_model("llama"), tmp_path / "int8"
    by_transformers(source, path, settings("int8"))
    change(path, lambda t: t.update({f"{Q}._weight_scale": torch.ones(7, 1)}))
    with pytest.raises(ArtifactCorrupt, match=f"{Q}.weight cannot be read"):
        dense(path, source)
    change(path, lambda t: t.pop(f"{Q}._weight_scale"))
    with pytest.raises(ArtifactCorrupt, match="it has no scale"):
        dense(path, source)


def test_a_tensor_that_the_library_cannot_dequantize(tiny_model, tmp_path):
    # Int4Tensor: its kernels alone know its layout.
    source, path = tiny_model("llama"), tmp_path / "int8"
    by_transformers(source, path, settings("int8"))
    names = ["qdata", "scale", "zero_point"]
    stated = {"block_size": [1, 32], "shape": [256, 256]}
    restate(
        path, say(json.dumps({"_type": "Int4Tensor", "_data": stated, "_tensor_data_names": names}))
    )
    with pytest.raises(ArtifactCorrupt, match="torchao cannot dequantize its Int4Tensor"):
        dense(path, source)
