"""Real artifacts of llm-compressor and AutoRound, each against its owner's own reading of it.

They are written in the owners' environments by round to nearest on a CPU, and read there again:
every tensor by the library's own dequantization, and logits by transformers' own run.
"""

import json
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.environments import require_environment
from helpers.quantized import read_existing
from qsweep.formats.container import container
from qsweep.formats.dense import load_dense

IDS = torch.randint(0, 4096, (2, 64), generator=torch.Generator().manual_seed(3))

WRITE = """
import sys, torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM
source, out, *schemes = sys.argv[1:]
ids = torch.randint(0, 4096, (4, 64), generator=torch.Generator().manual_seed(0))
rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
for name in schemes:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    scheme, _, kv = name.partition("+")
    more = {"kv_cache_scheme": cache} if kv else {}
    recipe = QuantizationModifier(targets=["Linear"], scheme=scheme, ignore=["lm_head"], **more)
    if kv or scheme in ("FP8", "NVFP4"):
        data = {"dataset": Dataset.from_dict(rows), "num_calibration_samples": 4}
        oneshot(model=model, recipe=recipe, max_seq_length=64, pipeline="basic", **data)
    else:
        oneshot(model=model, recipe=recipe, pipeline="datafree")
    model.save_pretrained(f"{out}/{name}", save_compressed=True)
"""

READ = """
import sys, torch
from compressed_tensors.quantization import disable_quantization
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
ids, out, *schemes = sys.argv[1:]
for name in schemes:
    model = AutoModelForCausalLM.from_pretrained(
        f"{out}/{name}", dtype=torch.bfloat16, quantization_config=CompressedTensorsConfig(run_compressed=False)
    ).eval()
    model.apply(disable_quantization)
    with torch.no_grad():
        found = {"logits": model(load_file(ids)["ids"]).logits.float()}
    found |= {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith("weight")}
    save_file(found, f"{out}/{name}.theirs")
"""

SCHEMES = {
    "FP8_DYNAMIC": ("fp8 per channel", "fp8 per token, dynamic"),
    "FP8": ("fp8 per tensor", "fp8 per tensor, static"),
    "FP8_BLOCK": ("fp8 block 128x128", "fp8 g128, dynamic"),
    "W8A8": ("int8 per channel", "int8 per token, dynamic"),
    "W4A16": ("int4 g128", None),
    "W4A16_ASYM": ("int4 g128 asym", None),
    "W3A16": ("int3 g128", None),
    "W8A16": ("int8 g128", None),
    "W4AFP8": ("int4 g128 in int8", "fp8 per token, dynamic"),
    "NVFP4": ("nvfp4", "nvfp4, dynamic"),
    "NVFP4A16": ("nvfp4", None),
    "MXFP4": ("mxfp4", "mxfp4, dynamic"),
    "MXFP4A16": ("mxfp4", None),
    "MXFP8": ("mxfp8", "mxfp8, dynamic"),
    "W8A8+kv": ("int8 per channel", "int8 per token, dynamic"),
}


@pytest.fixture(scope="module")
def written(pocket_dir, tmp_path_factory):
    """All of them, by llm-compressor and read by transformers in its environment."""
    python = require_environment("llmcompressor").interpreter("llmcompressor")
    out = tmp_path_factory.mktemp("llmcompressor")
    save_file({"ids": IDS}, out / "ids")
    for script, first in ((WRITE, pocket_dir), (READ, out / "ids")):
        command = [python, "-W", "ignore", "-c", script, first, out, *SCHEMES]
        subprocess.run(list(map(str, command)), check=True, timeout=900)
    return out


@pytest.mark.env
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_llm_compressor_writes(scheme, written, pocket_dir):
    kind, activations = SCHEMES[scheme]
    path = written / scheme
    artifact = read_existing(path)
    assert artifact.format == "compressed-tensors"
    assert artifact.details.get("activations") == activations
    assert artifact.details.get("kv_cache") == ("fp8 per tensor, static" if "+" in scheme else None)
    stored = container("compressed-tensors").stored(path)
    assert [s.type for s in stored if s.quantized] == [kind] * 28
    theirs = load_file(f"{path}.theirs")
    model = load_dense(artifact, pocket_dir, dtype=torch.bfloat16, device="cpu")
    for name, weight in model.named_parameters():
        if name in theirs:
            assert torch.equal(weight, theirs[name].to(weight.dtype)), name
    with torch.no_grad():
        logits = model(IDS).logits.float()
    # Equal where measured; their transformers is another version, which may sum in another order.
    torch.testing.assert_close(logits, theirs["logits"], rtol=0, atol=0.02)


AUTO_ROUND = """
import sys, torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer
source, out, name, scheme, form = sys.argv[1:]
ids = torch.randint(0, 4096, (4, 64), generator=torch.Generator().manual_seed(0))
rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
own = {"W4_SYM": True, "W4_ASYM": False}
if scheme in own:
    scheme = {"bits": 4, "group_size": 64, "sym": own[scheme], "data_type": "int"}
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
loader = torch.utils.data.DataLoader(rows, batch_size=4)
AutoRound(
    model, AutoTokenizer.from_pretrained(source), scheme=scheme, dataset=loader, iters=0, nsamples=4,
    seqlen=64, batch_size=4, device_map="cpu", enable_torch_compile=False,
).quantize_and_save(f"{out}/{name}", format=form)
"""
FORMS = {
    "int_sym": ("W4_SYM", "auto_round", "gptq", "int4"),
    "int_asym": ("W4_ASYM", "auto_round:auto_awq", "awq", "int4"),
    "mxfp4": ("MXFP4", "auto_round", "compressed-tensors", "mxfp4"),
    "mxfp8": ("MXFP8", "auto_round", "compressed-tensors", "mxfp8"),
    "nvfp4": ("NVFP4", "auto_round", "compressed-tensors", "nvfp4"),
    "fp8_static": ("FP8_STATIC", "auto_round", "compressed-tensors", "fp8 per channel"),
}


@pytest.mark.env
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FORMS)
def test_what_auto_round_writes(name, pocket_dir, tmp_path):
    """It is the model, as near as its number of bits: a layout misread would be far from it."""
    scheme, form, reader, kind = FORMS[name]
    python = require_environment("autoround").interpreter("autoround")
    command = [python, "-W", "ignore", "-c", AUTO_ROUND, pocket_dir, tmp_path, name, scheme, form]
    subprocess.run(list(map(str, command)), check=True, timeout=600)
    path = next((tmp_path / name).rglob("config.json")).parent
    config = json.loads((path / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "auto-round"
    artifact = read_existing(path)
    assert artifact.format == reader
    stored = container(reader).stored(path)
    assert {s.type.partition(" g")[0] for s in stored if s.quantized} == {kind}
    original = load_file(pocket_dir / "model.safetensors")
    weights = container(reader).dense_weights(artifact, pocket_dir, "cpu")
    for tensor in (s.name for s in stored if s.quantized):
        weight = original[tensor].float()
        error = (weights[tensor][...] - weight).norm() / weight.norm()
        assert error < (0.04 if "8" in kind else 0.2), tensor
