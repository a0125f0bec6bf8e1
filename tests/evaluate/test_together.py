"""Windows that go through a streamed model layer by layer give the whole model's figures."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import qsweep.evaluate.together as together_module
from qsweep.base.errors import TrialFailed
from qsweep.evaluate import build_reference, measure, noise_floor, open_reference
from qsweep.evaluate.together import together
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.models.facts import read_facts
from qsweep.models.streaming import stream_of
from qsweep.text.windows import Preset, Windows

pytestmark = pytest.mark.usefixtures("one_thread")


def some_windows(count=7, context=300):
    ids = torch.randint(0, 4096, (count, context), generator=torch.Generator().manual_seed(0))
    full = torch.full((count,), context)
    return Windows(ids, torch.ones_like(full), full, Preset("gptq", context), "none")


def load(path, *, stream, dtype=torch.float32):
    facts = read_facts(path, "x")
    return load_dense(reference_artifact(facts), path, dtype=dtype, device="cpu", stream=stream)


def counted(model):
    """The model, and the layers that are read of it."""
    stream, read = stream_of(model), []
    original = stream._load

    def load(index, names=None):
        read.append(index)
        original(index, names)

    stream._load = load
    return model, read


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# A dense one, a tied one with a hybrid of windows, a mixture, a state space beside attention.
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "qwen3_moe", "falcon_h1"])
def test_reference_and_divergence_are_the_same(tiny_model, tmp_path, architecture):
    path, windows = tiny_model(architecture), some_windows()
    found = []
    for stream in (False, True):
        out = tmp_path / str(stream)
        out.mkdir()
        build_reference(load(path, stream=stream, dtype=torch.bfloat16), windows, out)
        reference = open_reference(out, path, "cpu", torch.bfloat16)
        found.append((contents(out), measure(load(path, stream=stream), windows, reference)))
    (files, whole), (same_files, streamed) = found
    assert same_files == files
    assert streamed.metrics == whole.metrics
    assert streamed.metrics["kld"] > 0
    assert streamed.facts == whole.facts
    for name, values in whole.arrays.items():
        assert torch.equal(streamed.arrays[name], values)


def test_the_model_is_read_once_for_the_check_and_once_for_all_windows(tiny_model, tmp_path):
    model, read = counted(load(tiny_model("llama"), stream=True))
    build_reference(model, some_windows(), tmp_path)
    assert read == [0, 1, 0, 1]


@pytest.mark.parametrize("room", [1, 1_000_000, 1 << 30])
def test_hidden_states_beyond_memory_lie_on_disk_and_change_nothing(tiny_model, monkeypatch, room):
    path, windows = tiny_model("gemma3_text"), some_windows()
    whole = measure(load(path, stream=False), windows, batch=1)
    model, read = counted(load(path, stream=True))
    kept = []
    original = together_module.on_disk
    monkeypatch.setattr(together_module, "on_disk", lambda t: kept.append(t.nbytes) or original(t))
    monkeypatch.setattr(together_module, "available_bytes", lambda: 4 * room)
    streamed = measure(model, windows, batch=1)
    assert torch.equal(streamed.arrays["token_nll"], whole.arrays["token_nll"])
    # Masks stay in memory: without any, the check's two forwards and the windows come one by one.
    one_by_one = 2 * (2 + len(windows.ids))
    assert bool(kept) == (room == 1_000_000)
    assert {1: len(read) == one_by_one, 1 << 30: len(read) == 4}.get(room, len(read) < one_by_one)


def test_noise_floors_are_the_same(tiny_model, tmp_path):
    path, windows = tiny_model("llama"), some_windows()
    floors = []
    for stream in (False, True):
        out = tmp_path / str(stream)
        out.mkdir()
        model = load(path, stream=stream, dtype=torch.bfloat16)
        build_reference(model, windows, out)
        floors.append(noise_floor(model, windows, open_reference(out, path, "cpu", torch.bfloat16)))
    assert floors[0] == floors[1]
    assert floors[0]["kld_floor_dtype"] > 0


def test_weights_that_are_not_finite_are_named(tiny_model, tmp_path):
    path = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = torch.inf
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrialFailed, match=r"model\.layers\.1\.mlp\.down_proj .*1 of \d+ in weight"):
        measure(load(path, stream=True), some_windows(2))


def test_progress_only_grows(tiny_model):
    model, told = load(tiny_model("llama"), stream=True), []
    measure(model, some_windows(), progress=lambda _, done: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 1


def test_forwards_of_a_whole_model_are_run_when_they_are_asked_for(tiny_model):
    model, ran = load(tiny_model("llama"), stream=False), []
    results = together(model, [lambda n=n: ran.append(n) or n for n in range(3)])
    assert next(results) == 0
    assert ran == [0]


def test_what_goes_wrong_in_one_forward_is_raised_and_the_others_are_given_up(tiny_model):
    model = load(tiny_model("llama"), stream=True)
    ids = torch.ones(1, 8, dtype=torch.int64)

    def fails():
        model(ids)
        raise ArithmeticError

    with torch.inference_mode(), pytest.raises(ArithmeticError):
        list(together(model, [lambda: model(ids), fails, lambda: model(ids)]))
    # The model can be used afterwards.
    with torch.inference_mode():
        assert torch.isfinite(model(ids).logits).all()
    assert all(p.is_meta for p in stream_of(model).layers[0].parameters())
