"""Artifacts of mixtures: which tensors are written, under which names, and that they load."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from miniatures import miniature
from qsweep.base.errors import TrialFailed
from qsweep.formats.dense import load_dense
from qsweep.models.facts import read_facts, read_tensors
from qsweep.models.source import SourceModel
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.rtn import RTN
from qsweep.text.calibration import CalibrationTokens

GENERATOR = torch.Generator().manual_seed(0)
CALIBRATION = CalibrationTokens(torch.randint(5, 400, (3, 48), generator=GENERATOR).tolist())


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    def make(model_type):
        folder = tmp_path_factory.mktemp(model_type)
        return read_facts(miniature(model_type, folder), model_type)

    return make


def written(quantizer, facts, out):
    out.mkdir()
    artifact = quantizer.quantize(SourceModel(facts, "cpu"), CALIBRATION, out)
    load_dense(artifact, facts.path, dtype=torch.float32, device="cpu")
    return artifact, read_tensors(out)


@pytest.mark.parametrize(
    ("quantizer", "rules"),
    [(NativeAWQ, "*.layers.0.*"), (NativeGPTQ, "*.experts.*"), (RTN, "*.experts.*")],
)
def test_experts_that_are_kept_are_written_once_as_the_checkpoint_has_them(
    facts, quantizer, rules, tmp_path
):
    found = facts("qwen3_moe")
    _, tensors = written(
        quantizer(bits=8, group_size=32, rules={rules: "keep"}), found, tmp_path / "out"
    )
    experts = {n for n in read_tensors(found.path) if "layers.0." in n and ".experts." in n}
    assert {n for n in tensors if "layers.0." in n and ".experts." in n} == experts


def test_what_runs_twice_leaves_the_rest_sequential(facts, tmp_path):
    found = facts("zamba2")
    made = [
        written(NativeGPTQ(bits=3, group_size=32, **more), found, tmp_path / str(n))[0]
        for n, more in enumerate(({}, {"gptaq_alpha": 0.8}, {"sequential": False}))
    ]
    files = {(one.path / "model.safetensors").read_bytes() for one in made}
    assert len(files) == 3


def test_layers_that_predict_further_tokens_are_carried_by_everyone(facts, tmp_path):
    path = facts("deepseek_v3").path
    tensors = load_file(path / "model.safetensors")
    more = {
        name.replace("layers.1.", "layers.2."): tensor.clone()
        for name, tensor in tensors.items()
        if "layers.1." in name
    }
    more["model.layers.2.eh_proj.weight"] = torch.randn(64, 128).bfloat16()
    more["model.layers.2.shared_head.head.weight"] = torch.randn(4096, 64).bfloat16()
    save_file(tensors | more, path / "model.safetensors", metadata={"format": "pt"})
    found = read_facts(path, "mtp")
    assert not any("layers.2." in name for name in found.all_linears)
    sizes = set()
    for quantizer in (RTN(bits=4, group_size=32), NativeGPTQ(bits=4, group_size=32)):
        artifact, stored = written(quantizer, found, tmp_path / quantizer.method)
        assert more.keys() <= stored.keys()
        sizes.add(artifact.size.bpw)
    assert len(sizes) == 1


def test_a_router_that_is_not_finite_is_named_by_whoever_copies_it(facts, tmp_path):
    path = facts("mixtral").path
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.1.block_sparse_moe.gate"
    tensors[f"{name}.weight"][0, 0] = float("nan")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    for quantizer in (RTN(group_size=32), NativeGPTQ(group_size=32)):
        with pytest.raises(TrialFailed, match=name):
            written(quantizer, read_facts(path, "nan"), tmp_path / quantizer.method)
