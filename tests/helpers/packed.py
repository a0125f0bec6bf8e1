"""Packed layers, and checkpoints of them, as makers of GPTQ and AWQ files write them."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qsweep.formats.packing import QuantizedMatrix


def make_grid(bits, outputs=32, inputs=64, group_size=16, order=None, seed=0):
    """A matrix of random codes; ``order`` permutes which group an input belongs to."""
    generator = torch.Generator().manual_seed(seed)
    groups = inputs // group_size
    g_idx = None
    if order is not None:
        g_idx = (torch.arange(inputs) // group_size)[torch.randperm(inputs, generator=generator)]
    return QuantizedMatrix(
        codes=torch.randint(0, 2**bits, (outputs, inputs), generator=generator).to(torch.uint8),
        zeros=torch.randint(0, 2**bits, (outputs, groups), generator=generator).to(torch.uint8),
        scales=(torch.rand(outputs, groups, generator=generator) / 50 + 0.001).half(),
        g_idx=g_idx,
    )


def gptqmodel():
    """GPTQModel, or the test is skipped; its thread pools want a number on two cores."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    return pytest.importorskip("gptqmodel")


def torch_linear(grid, bits, pack_dtype=torch.int32, **options):
    """GPTQModel's portable layer of a grid's shape, with no weights yet; it compiles nothing."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    outputs, inputs = grid.codes.shape
    module = TorchLinear(
        bits=bits,
        group_size=inputs // grid.scales.shape[1],
        sym=False,
        desc_act=grid.g_idx is not None,
        in_features=inputs,
        out_features=outputs,
        bias=False,
        pack_dtype=pack_dtype,
        register_buffers=True,
        **options,
    )
    module.optimized = True  # or it compiles what a test runs once
    return module


def packed_checkpoint(source, out, layers, settings, *, file="model.safetensors", beside=None):
    """Write a model of which some layers are packed.

    Args:
        source: The unquantized model's directory.
        out: Where to write it.
        layers: By layer, its tensors by part.
        settings: The ``quantization_config``.
        file: What the weights' file is called.
        beside: A file of their own for the settings, instead of config.json.
    """
    out.mkdir(parents=True, exist_ok=True)
    saved = load_file(source / "model.safetensors")
    for layer, parts in layers.items():
        saved.pop(f"{layer}.weight", None)
        saved |= {f"{layer}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    save_file(saved, out / file)
    config = json.loads((source / "config.json").read_text())
    if beside is None:
        config["quantization_config"] = settings
    else:
        (out / beside).write_text(json.dumps(settings))
    (out / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, out / name)
    return out
