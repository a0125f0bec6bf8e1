"""Checkpoints in every number format, as transformers itself loads them on a CPU, and as we do."""

from collections import Counter

import pytest
import torch

from qsweep.formats import numbers
from qsweep.formats.container import container
from qsweep.formats.dense import load_dense
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.rtn import RTN
from qsweep.text.calibration import CalibrationTokens

IDS = torch.randint(0, 4096, (2, 48), generator=torch.Generator().manual_seed(3))
TEXT = CalibrationTokens(IDS.tolist())
NAMES = (
    *("W4A16", "W8A16", "W8A8", "W4A8", "W4AFP8", "FP8", "FP8Dynamic", "FP8Block"),
    *("NVFP4", "NVFP4A16", "MXFP4", "MXFP4A16", "MXFP8", "NF4", "FP4", "Ternary"),
)
CASES = [
    *(RTN(format=getattr(numbers, name)()) for name in NAMES),
    # What is packed after a solver has chosen codes takes another way than what is rounded alone.
    NativeGPTQ(format=numbers.NVFP4()),
    NativeGPTQ(format=numbers.MXFP4()),
    NativeGPTQ(format=numbers.FP8()),
    NativeGPTQ(format=numbers.FP8Block()),
    NativeGPTQ(bits=4, group_size=64, format=numbers.Int("compressed-tensors")),
    NativeAWQ(bits=4, group_size=64, format=numbers.Int("compressed-tensors")),
    NativeAWQ(format=numbers.W8A8()),
    NativeGPTQ(format=numbers.NF4()),
]


def name(quantizer):
    options = quantizer.options()
    return f"{quantizer.method}-{options.get('format', 'int')}"


@pytest.fixture(scope="module")
def model(tiny_model):
    path = tiny_model("llama")
    return SourceModel(read_facts(path, "tiny"), "cpu")


@pytest.mark.parametrize("quantizer", CASES, ids=name)
def test_transformers_reads_what_is_written(quantizer, model, tmp_path):
    from compressed_tensors.quantization import disable_quantization
    from transformers import AutoModelForCausalLM

    quantizer.check(model.facts)
    artifact = quantizer.quantize(model, TEXT, tmp_path)
    assert artifact.format == quantizer.holder
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    # Weights alone: what becomes of activations is measured apart.
    theirs.apply(disable_quantization)
    ours = load_dense(artifact, model.path, dtype=torch.bfloat16, device="cpu")
    with torch.no_grad():
        expected, found = (m(IDS).logits.float() for m in (ours, theirs))
    # In bfloat16, and bitsandbytes multiplies in an order of its own.
    assert (found - expected).norm() / expected.norm() < 0.03
    kinds = Counter(s.type for s in container(artifact.format).stored(tmp_path) if s.quantized)
    assert len(kinds) == 1 and sum(kinds.values()) == len(model.facts.linears)
