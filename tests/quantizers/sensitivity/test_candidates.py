"""What is read of a candidate's layer is what the dense engine measures of it."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from miniatures import miniature
from qsweep.base.errors import ArtifactCorrupt, IncompatibleTrial
from qsweep.base.files import read_json, write_json
from qsweep.formats import numbers
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.models.experts import attach_experts
from qsweep.models.facts import read_facts, read_tensors
from qsweep.models.source import SourceModel
from qsweep.models.spelling import spelling_of
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.native.graph import linears_of, weight_of
from qsweep.quantizers.rtn import RTN
from qsweep.quantizers.sensitivity.candidates import Candidate
from qsweep.text.calibration import CalibrationTokens

TEXT = CalibrationTokens(
    torch.randint(5, 400, (4, 48), generator=torch.Generator().manual_seed(0)).tolist()
)
INT4 = RTN(bits=4, group_size=32)


def dense(artifact, path):
    model = load_dense(artifact, path, dtype=torch.float32, device="cpu")
    attach_experts(model)
    return model


def read(artifact, path):
    """The candidate, and the model that it is compared with."""
    model = SourceModel(read_facts(path, path.name), "cpu")
    network = dense(reference_artifact(model.facts), path)
    spelling = spelling_of(network, read_tensors(path))
    return Candidate(artifact, model, spelling), network


def require_same_errors(artifact, path):
    candidate, network = read(artifact, path)
    quantized = linears_of(dense(artifact, path))
    changed = 0
    for name, module in linears_of(network).items():
        expected = weight_of(quantized[name]) - weight_of(module)
        error = candidate.error(name, module)
        if error is None:
            assert not expected.any(), name
            continue
        assert torch.allclose(error, expected, atol=1e-6), name
        changed += bool(error.any())
    assert changed > 4


def quantized(quantizer, path, out):
    out.mkdir()
    return quantizer.quantize(SourceModel(read_facts(path, path.name), "cpu"), TEXT, out)


@pytest.mark.parametrize(
    ("model_type", "quantizer"),
    [
        ("llama", INT4),
        ("gpt2", INT4),
        ("mixtral", INT4),
        ("gpt_oss", INT4),
        ("gpt_oss", NativeGPTQ(bits=4, group_size=32)),
        ("qwen3_moe", RTN(bits=4, group_size=32, rules={"*.layers.0.*": "keep"})),
        ("granitemoe", INT4),
        ("llama4_text", INT4),
        ("hrm_text", INT4),
        ("phi3", NativeGPTQ(group_size=32, format=numbers.Int("compressed-tensors"))),
    ],
    ids=lambda value: value if isinstance(value, str) else value.method,
)
def test_errors_are_those_of_the_dense_model(model_type, quantizer, tmp_path):
    path = miniature(model_type, tmp_path / "model", dtype="float32")
    require_same_errors(quantized(quantizer, path, tmp_path / "out"), path)


def test_an_unquantized_checkpoint_of_another_maker_is_a_candidate_too(pocket_dir, tmp_path):
    shutil.copytree(pocket_dir, tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj"
    tensors[f"{name}.weight"] *= 1.5
    save_file(tensors, file, metadata={"format": "pt"})
    facts = read_facts(tmp_path / "other", "other")
    artifact = replace(reference_artifact(facts), origin=tmp_path / "other")
    candidate, network = read(artifact, pocket_dir)
    error = candidate.error(name, network.get_submodule(name))
    assert torch.allclose(error, network.get_submodule(name).weight / 2, atol=1e-2)
    assert not candidate.error("model.embed_tokens", network.lm_head).any()
    assert candidate.error("lm_head", network.lm_head) is None


@pytest.mark.parametrize(
    "quantizer", [NativeAWQ(), NativeAWQ(format=numbers.Int("compressed-tensors"))]
)
def test_scales_in_the_layers_before_are_refused(pocket_dir, tmp_path, quantizer):
    artifact = quantized(quantizer, pocket_dir, tmp_path / "out")
    with pytest.raises(IncompatibleTrial, match="by itself; take GPTQ, rounding or GGUF"):
        read(artifact, pocket_dir)


def test_a_damaged_weight_is_named(pocket_dir, tmp_path):
    artifact = quantized(INT4, pocket_dir, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.2.mlp.down_proj"
    tensors[f"{name}.scales"][0, 3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    candidate, network = read(artifact, pocket_dir)
    with pytest.raises(ArtifactCorrupt, match=rf"{name} has weights that are NaN or infinite"):
        candidate.error(name, network.get_submodule(name))
    assert candidate.error(
        "model.layers.1.mlp.down_proj", network.model.layers[1].mlp.down_proj
    ).any()


def test_halves_of_rows_that_alternate_are_refused_and_our_own_experts_are_not(tmp_path):
    path = miniature("gpt_oss", tmp_path / "model", dtype="float32")
    quantizer = NativeGPTQ(bits=4, group_size=32)
    artifact = quantized(quantizer, path, tmp_path / "out")
    ours, network = read(artifact, path)
    name, expert = next(
        (name, module) for name, module in linears_of(network).items() if name.endswith("gate_proj")
    )
    assert ours.error(name, expert).any()
    file = tmp_path / "out" / "config.json"
    config = read_json(file)
    config["quantization_config"]["meta"]["quantizer"] = ["gptqmodel:5.0.0"]
    write_json(file, config)
    theirs, _ = read(artifact, path)
    with pytest.raises(IncompatibleTrial, match="quantize with quant.backend=native"):
        theirs.error(name, expert)
