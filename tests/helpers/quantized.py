"""Checkpoints that are quantized: by transformers itself where it does so on a CPU, else by hand."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.artifact import Artifact
from qsweep.formats.dense import load_dense
from qsweep.formats.recognize import recognize

IDS = torch.randint(0, 4096, (2, 64), generator=torch.Generator().manual_seed(3))
_COMPANIONS = ("tokenizer.json", "tokenizer_config.json")


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.float()


def read_existing(path):
    """The artifact that a checkpoint's directory is."""
    found = recognize(path)
    return Artifact(path, found.name, found.size(path), details=found.details(path))


def refused(path, source, said):
    """Check that a damaged checkpoint is told in one line that says so."""
    with pytest.raises(ArtifactCorrupt, match=said) as caught:
        dense(path, source)
    assert "\n" not in str(caught.value)


def dense(path, source, dtype=torch.float32):
    """What the dense engine makes of a checkpoint."""
    return load_dense(read_existing(path), source, dtype=dtype, device="cpu")


def by_transformers(source, out, settings):
    """``source`` quantized and saved by transformers; returns the model that it saved."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=settings, dtype=torch.bfloat16
    ).eval()
    model.save_pretrained(out)
    copy_companions(source, out)
    return model


def write_checkpoint(source, out, tensors, settings):
    """A checkpoint of these tensors, with the configuration and tokenizer of ``source``."""
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    copy_companions(source, out)
    return out


def copy_companions(source, out):
    for name in _COMPANIONS:
        if (source / name).exists():
            shutil.copy(source / name, out / name)


def fp8(source: Path, out: Path, **options) -> Path:
    """Fine-grained FP8, by the operation with which transformers quantizes on a GPU.

    On a CPU it refuses to (``FineGrainedFP8HfQuantizer.validate_environment``), so its
    ``Fp8Quantize`` is called for every linear layer; a matrix that is no multiple of the blocks it
    leaves as it is.
    """
    from types import SimpleNamespace

    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    settings = FineGrainedFP8Config(**options)
    operation = Fp8Quantize(SimpleNamespace(quantization_config=settings))
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        linear = "_proj" in name and name.endswith(".weight")
        tensors |= operation.convert({name: tensor}) if linear else {name: tensor}
    if options.get("weight_block_size", True) is None:
        tensors = {n: t.reshape(()) if n.endswith("_scale_inv") else t for n, t in tensors.items()}
    return write_checkpoint(source, out, tensors, settings.to_dict())


def mxfp4(source: Path, out: Path, seed: int = 0) -> Path:
    """gpt-oss with random experts in MXFP4.

    transformers quantizes them with a Triton kernel of the hub's, so codes and exponents are drawn:
    every byte is a pair of codes. The exponents are those of weights of about the usual size.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        shape = (experts, outputs, inputs // 32)
        codes = torch.randint(0, 256, (*shape, 16), generator=generator)
        exponents = torch.randint(127 - 8, 127 - 4, shape, generator=generator)
        tensors[f"{name}_blocks"] = codes.to(torch.uint8)
        tensors[f"{name}_scales"] = exponents.to(torch.uint8)
    settings = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    }
    return write_checkpoint(source, out, tensors, settings)


def change(path, edit):
    """Edit the tensors of a checkpoint in one file, its header's metadata kept."""
    from safetensors import safe_open

    file = path / "model.safetensors"
    tensors = load_file(file)
    with safe_open(file, framework="pt") as handle:
        metadata = handle.metadata()
    edit(tensors)
    save_file(tensors, file, metadata=metadata)
