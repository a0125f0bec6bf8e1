"""Everything that computes on a device, on one that is pretended: no GPU is needed for a mistake.

Figures and files must be the host's, no operation may have operands on both, and nothing in the loop
over windows may wait for the device. See :mod:`helpers.pretended` for what this cannot see.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpu_parts.models import random_windows
from helpers.pretended import (
    OnDevice,
    TwoDevices,
    Waited,
    forbid_waiting,
    pretended,
    without_waiting,
)
from helpers.quantized import fp8, read_existing
from qsweep.evaluate import build_reference, measure, open_reference
from qsweep.evaluate.as_served import measure_as_served
from qsweep.evaluate.engine import open_engine
from qsweep.evaluate.served import Serving
from qsweep.formats import numbers
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ, quantize_grid
from qsweep.quantizers.rtn import RTN
from qsweep.quantizers.sensitivity.predict import sensitivities
from qsweep.tasks.generation import generate
from qsweep.tasks.likelihood import score_pairs
from qsweep.tasks.requests import Sampling
from qsweep.tasks.text_model import TextModel
from qsweep.text.calibration import CalibrationTokens

IDS = torch.randint(0, 4096, (4, 48), generator=torch.Generator().manual_seed(3))
TEXT = CalibrationTokens(IDS.tolist())
FORMATS = (
    *("W4A16", "W8A8", "W4AFP8", "FP8", "FP8Dynamic", "FP8Block", "NVFP4", "MXFP4", "MXFP8"),
    *("NF4", "FP4", "Ternary"),
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def cuda(monkeypatch):
    # The host multiplies the calibration text in bfloat16 where it can, a GPU in the model's own dtype.
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    return lambda: pretended(monkeypatch)


@pytest.fixture
def exact(tiny_model, tmp_path):
    """A miniature in float32, so that host and device read the same weights in the same dtype."""

    def make(architecture):
        out = tmp_path / architecture
        if not out.exists():
            shutil.copytree(tiny_model(architecture), out)
            for file in out.glob("*.safetensors"):
                tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
                save_file(tensors, file, metadata={"format": "pt"})
            config = json.loads((out / "config.json").read_text())
            (out / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
        return out

    return make


def dense(path, device, artifact=None, **options):
    artifact = artifact or reference_artifact(read_facts(path, "x"))
    return load_dense(artifact, path, dtype=torch.float32, device=device, **options)


def test_the_pretended_device_behaves_like_one(cuda):
    host = torch.ones(4, 4)
    with cuda() as device:
        there = torch.ones(4, 4, device=device)
        assert str(there.device) == device
        assert str((there @ there)[0].device) == device
        assert isinstance(there.half().relu_(), OnDevice)
        assert not isinstance(there.cpu(), OnDevice)
        assert str(torch.nn.Linear(4, 4).to(device).weight.device) == device
        for wrong in (
            lambda: there @ host,
            lambda: torch.cat([there, host]),
            lambda: there.index_select(0, torch.tensor([0])),
            lambda: there.add_(host),
            lambda: host[torch.zeros(2, dtype=int, device=device)],
            lambda: there.__setitem__(torch.zeros(4, dtype=int, device=device), host),
        ):
            with pytest.raises(TwoDevices):
                wrong()
        assert float((there * torch.tensor(2.0)).sum()) == 32  # a scalar of the host's may be
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        there[0:2] = host[0:2]
        with without_waiting():
            there.to(device).sum()
            there[torch.zeros(2, dtype=int)].sum()
            for waits in (
                there.sum().item,
                there.cpu,
                lambda: there[there > 0],
                lambda: bool(there.any()),
                lambda: torch.where(there > 0),
                lambda: there.repeat_interleave(torch.ones(4, dtype=int, device=device)),
            ):
                with pytest.raises(Waited):
                    waits()


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "gemma3_text", "lfm2", "falcon"])
@pytest.mark.parametrize("stream", [False, True])
def test_perplexity_and_divergence(architecture, stream, cuda, tiny_model, tmp_path):
    path = tiny_model(architecture)
    windows = random_windows(5, 48, read_facts(path, "x").vocab_size)
    expected = measure(dense(path, "cpu"), windows, batch=2)

    def watch(_, done):
        # Weights that are read while a layer waits for them are waited for.
        forbid_waiting(done is not None and done < 1 and not stream)

    with cuda() as device:
        model = dense(path, device, stream=stream)
        assert model.device == torch.device(device)
        engine = open_engine(model, windows.ids)
        try:
            build_reference(model, windows, tmp_path, watch, shard_bytes=100_000)
            forbid_waiting(False)
            reference = open_reference(tmp_path, path, device, torch.float32)
            found = measure(model, windows, reference, watch, batch=2, engine=engine)
        finally:
            forbid_waiting(False)
        assert not any(isinstance(array, OnDevice) for array in found.arrays.values())
    torch.testing.assert_close(found.arrays["token_nll"], expected.arrays["token_nll"])
    assert found.metrics["kld"] < 1e-6
    assert found.facts["device_type"] == "cuda"


@pytest.mark.parametrize("name", FORMATS)
def test_rounding_packing_and_unpacking(name, cuda, exact, tmp_path):
    path = exact("llama")
    quantizer = RTN(format=getattr(numbers, name)())
    made = {}
    for device in ("cpu", "cuda:0"):
        out = tmp_path / device.partition(":")[0]
        out.mkdir()
        with cuda():
            made[device] = quantizer.quantize(SourceModel(read_facts(path, "x"), device), TEXT, out)
    assert same_files(tmp_path / "cpu", tmp_path / "cuda")
    expected = dense(path, "cpu", made["cpu"])
    with cuda() as device:
        found = dense(path, device, made["cuda:0"])
        assert all(str(p.device) == device for p in found.parameters())
        weights = {name: value.cpu() for name, value in found.state_dict().items()}
    torch.testing.assert_close(weights, expected.state_dict(), rtol=0, atol=0)


def test_what_others_wrote_is_unpacked(cuda, tiny_model, tmp_path):
    source = tiny_model("llama")
    artifact = read_existing(fp8(source, tmp_path / "theirs"))
    expected = dense(source, "cpu", artifact).state_dict()
    with cuda() as device:
        model = dense(source, device, artifact)
        found = {name: value.cpu() for name, value in model.state_dict().items()}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


PASSES = {
    "llama": (NativeGPTQ(bits=4, group_size=32), NativeAWQ(format=numbers.W8A8())),
    "qwen3_moe": (
        NativeGPTQ(bits=3, group_size=32, sequential=False, desc_act=True),
        NativeAWQ(bits=4, group_size=32),
    ),
    "lfm2": (NativeGPTQ(bits=4, group_size=32, gptaq_alpha=0.5, scale_search="loss"),),
    "qwen3": (NativeGPTQ(format=numbers.NVFP4()),),
    "mistral": (NativeGPTQ(format=numbers.Q4K()),),
}


@pytest.mark.parametrize(
    "architecture",
    [
        name if name in ("llama", "qwen3_moe") else pytest.param(name, marks=pytest.mark.slow)
        for name in PASSES
    ],
)
def test_one_pass_of_every_solver(architecture, cuda, exact, tmp_path):
    path, quantizers = exact(architecture), PASSES[architecture]
    for device in ("cpu", "cuda:0"):
        outs = [tmp_path / device.partition(":")[0] / str(n) for n in range(len(quantizers))]
        for out in outs:
            out.mkdir(parents=True)
        pairs = list(zip(quantizers, outs, strict=True))
        with cuda():
            quantize_grid(SourceModel(read_facts(path, "x"), device), TEXT, pairs)
    for number in range(len(quantizers)):
        one, other = (tmp_path / kind / str(number) for kind in ("cpu", "cuda"))
        assert same_files(one, other), quantizers[number]


@pytest.mark.slow
def test_sensitivities_and_the_output_hessian(cuda, exact, tmp_path):
    path = exact("llama")
    (tmp_path / "rtn").mkdir()
    source, text = (
        SourceModel(read_facts(path, "x"), "cpu"),
        CalibrationTokens(IDS[:2, :24].tolist()),
    )
    candidate = RTN(bits=4, group_size=32).quantize(source, None, tmp_path / "rtn")
    expected = sensitivities(source, text, {"rtn": candidate})["rtn"]
    felt = NativeGPTQ(bits=4, group_size=32, gptq_output_hessian=True)
    with cuda() as device:
        source = SourceModel(read_facts(path, "x"), device)
        found = sensitivities(source, text, {"rtn": candidate})["rtn"]
        felt.quantize(source, text, tmp_path)
    assert found == pytest.approx(expected, rel=1e-3)


def test_activations_and_cache_as_served(cuda, tiny_model, tmp_path):
    path = tiny_model("llama")
    windows = random_windows(3, 48, read_facts(path, "x").vocab_size)
    source = SourceModel(read_facts(path, "x"), "cpu")
    artifact = RTN(format=numbers.FP8Dynamic()).quantize(source, None, tmp_path)
    serving = Serving(activations=True, kv_cache="q4_0")
    expected = measure_as_served(dense(path, "cpu", artifact), windows, serving, artifact)
    with cuda() as device:
        found = measure_as_served(dense(path, device, artifact), windows, serving, artifact)
    assert "refused" not in found.facts
    assert found.metrics["ppl"] == pytest.approx(expected.metrics["ppl"], rel=1e-5)


def test_tasks(cuda, pocket_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pocket_dir)
    contexts = ["def main(", "import os\nimport", "The list"]
    continuations = ["self):", " sys", " is empty."]

    def ask(device):
        lm = TextModel(dense(pocket_dir, device), tokenizer, 256)
        pairs = [lm.pair(*both) for both in zip(contexts, continuations, strict=True)]
        prompts = [lm.encode(context) for context in contexts]
        said = generate(lm, prompts, Sampling(max_new_tokens=6), lambda _: None)
        return [one.logprob for one in score_pairs(lm, pairs, lambda _: None)], said

    likelihoods, texts = ask("cpu")
    with cuda() as device:
        found = ask(device)
    assert found[0] == pytest.approx(likelihoods, rel=1e-4)
    assert found[1] == texts


def same_files(one: Path, other: Path) -> bool:
    names = sorted(file.name for file in one.iterdir())
    assert names == sorted(file.name for file in other.iterdir())
    weights = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    assert weights
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in weights)
