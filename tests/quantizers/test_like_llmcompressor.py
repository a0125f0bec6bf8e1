"""Round to nearest in every preset scheme, bit for bit what llm-compressor's modifier makes of it.

So that a difference between two methods is the methods', and no error's.
"""

import json
import subprocess
from collections.abc import Mapping

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file, save_file

from helpers.environments import require_environment
from qsweep.formats import numbers
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.isolated import LLMCompressorRTN
from qsweep.quantizers.rtn import RTN
from qsweep.text.calibration import CalibrationTokens

FORMATS = {
    cls.name: cls()
    for cls in (
        *(numbers.W4A16, numbers.W8A16, numbers.W8A8, numbers.W4A8, numbers.W4AFP8),
        *(numbers.FP8, numbers.FP8Dynamic, numbers.FP8Block),
        *(numbers.NVFP4, numbers.NVFP4A16, numbers.MXFP4, numbers.MXFP4A16, numbers.MXFP8),
    )
}
IDS = torch.randint(0, 4096, (4, 64), generator=torch.Generator().manual_seed(0))

# Alone with the library: qsweep's worker has no part in it.
WRITE = """
import json, sys, torch
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
IntermediatesCache.pin_memory = lambda *_: None
ids = load_file(sys.argv[1])["ids"]
rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
for source, out, scheme, ignore in json.loads(sys.argv[2]):
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    recipe = QuantizationModifier(targets=["Linear"], scheme=scheme, ignore=["lm_head", *ignore])
    data = {"pipeline": "datafree"}
    if scheme in ("FP8", "NVFP4"):
        loader = torch.utils.data.DataLoader(rows, batch_size=1)
        data = {"dataset": loader, "num_calibration_samples": len(rows), "max_seq_length": 64}
        data["pipeline"] = "sequential"
    oneshot(model=model, recipe=recipe, **data)
    model.save_pretrained(out, save_compressed=True)
"""


def odd_model(pocket_dir, out):
    """Rows and columns of attention that are no multiples of 128, and groups of nothing but zeros."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=40,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    torch.manual_seed(5)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith("_proj.weight"):
                continue
            # Magnitudes of many orders, as trained weights have them.
            weight.mul_(torch.randn(len(weight), 1, dtype=torch.bfloat16).exp_())
            weight[3] = 0
            weight[5, :128] = 0
            weight[7, 130] = 3.0
    model.save_pretrained(out)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (out / file).write_bytes((pocket_dir / file).read_bytes())
    return out


@pytest.fixture(scope="module")
def models(pocket_dir, tmp_path_factory):
    odd = odd_model(pocket_dir, tmp_path_factory.mktemp("odd"))
    return {name: read_facts(path, name) for name, path in (("pocket", pocket_dir), ("odd", odd))}


@pytest.fixture(scope="module")
def theirs(models, tmp_path_factory):
    """Folders of llm-compressor's checkpoints by model and format, all made by one process."""
    python = require_environment("llmcompressor").interpreter("llmcompressor")
    out = tmp_path_factory.mktemp("theirs")
    save_file({"ids": IDS}, out / "ids")
    found, jobs = {}, []
    for name, facts in models.items():
        for format_ in FORMATS.values():
            folder = found[name, format_.name] = out / name / format_.name
            kept = list(RTN(format=format_).kept(facts))
            jobs.append((str(facts.path), str(folder), format_.preset, kept))
    command = [python, "-W", "ignore", "-c", WRITE, out / "ids", json.dumps(jobs)]
    subprocess.run(list(map(str, command)), check=True, timeout=900, capture_output=True)
    return found


def calibration(quantizer):
    return CalibrationTokens(IDS.tolist()) if quantizer.uses_calibration else None


def tensors(folder):
    return load_file(folder / "model.safetensors")


def same_bits(ours, theirs):
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    view = [t.contiguous().reshape(-1).view(torch.uint8) for t in (ours, theirs)]
    return torch.equal(*view)


def config(folder):
    """What a checkpoint says of itself, less what says how its scales were found."""
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    parsed = QuantizationConfig.model_validate(settings)
    groups = []
    for group in parsed.config_groups.values():
        kept = group.model_dump()
        for part in ("weights", "input_activations"):
            for name in ("observer", "observer_kwargs", "actorder"):
                (kept[part] or {}).pop(name, None)
        groups.append(kept)
    return groups, parsed.format, parsed.kv_cache_scheme, settings["quant_method"]


def compare(ours, theirs):
    """Every tensor of two checkpoints: inputs' scales nearly, all else bit for bit."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if name.rpartition(".")[2].startswith("input_"):
            # They depend on sums in bfloat16, whose order is the library's; two of its steps apart.
            torch.testing.assert_close(ours[name], tensor, rtol=2**-6, atol=0, msg=name)
        else:
            assert same_bits(ours[name], tensor), name


@pytest.mark.env
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", ["pocket", "odd"])
def test_round_to_nearest_is_theirs_bit_for_bit(name, format_, models, theirs, tmp_path):
    quantizer = RTN(format=FORMATS[format_])
    quantizer.check(models[name])
    quantizer.quantize(SourceModel(models[name], "cpu"), calibration(quantizer), tmp_path)
    folder = theirs[name, format_]
    compare(tensors(tmp_path), tensors(folder))
    assert config(tmp_path) == config(folder)


@pytest.mark.env
@pytest.mark.timeout(600)
@pytest.mark.parametrize("format_", ["w4a16", "fp8", "nvfp4"])
def test_the_worker_makes_the_same_of_a_preset(format_, models, theirs, tmp_path):
    env = require_environment("llmcompressor")
    quantizer = LLMCompressorRTN(format=FORMATS[format_], env=env)
    quantizer.check(models["odd"])
    model = SourceModel(models["odd"], "cpu")
    artifact = quantizer.quantize(model, calibration(quantizer), tmp_path)
    assert artifact.details["compute_dtype"] == "bfloat16"
    own: Mapping = tensors(tmp_path)
    expected = tensors(theirs["odd", format_])
    assert own.keys() == expected.keys()
    assert all(same_bits(own[name], tensor) for name, tensor in expected.items())
    assert config(tmp_path) == config(theirs["odd", format_])
