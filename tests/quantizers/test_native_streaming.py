"""A pass over a model whose layers are read one at a time writes what a pass over the whole writes."""

import weakref
from dataclasses import replace

import pytest
import torch

from qsweep.base.errors import IncompatibleTrial
from qsweep.models import room
from qsweep.models.facts import read_facts
from qsweep.models.layer_list import CannotStream
from qsweep.models.source import SourceModel
from qsweep.quantizers.importance import measure_importance
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ, capture, grid
from qsweep.quantizers.native.grid import run
from qsweep.quantizers.rtn import RTN
from qsweep.text.calibration import CalibrationTokens

pytestmark = pytest.mark.usefixtures("one_thread")

GENERATOR = torch.Generator().manual_seed(1)
SAMPLES = [torch.randint(0, 4096, (64,), generator=GENERATOR).tolist() for _ in range(6)]
FOUR = (
    NativeGPTQ(bits=4, group_size=32),
    NativeGPTQ(bits=3, group_size=64, desc_act=True),
    NativeAWQ(bits=4, group_size=64),
    RTN(bits=4, group_size=32),
)


def made(path, out, quantizers, *, stream):
    """What a pass writes, by configuration and file; losses; the importance matrix."""
    pairs = []
    for number, quantizer in enumerate(quantizers):
        folder = out / str(stream) / str(number)
        folder.mkdir(parents=True)
        pairs.append((quantizer, folder))
    source = SourceModel(read_facts(path, "x"), "cpu", stream=stream)
    found = run(source, CalibrationTokens(SAMPLES), pairs, lambda *_: None, importance=True)
    files = [
        {file.name: file.read_bytes() for file in sorted(folder.iterdir())} for _, folder in pairs
    ]
    losses = [artifact.details.get("loss") for artifact in found.artifacts]
    return files, losses, found.importance


# A dense one, a mixture stored one by one and one stored in stacks, a hybrid, one with nn.Linear's heirs.
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "gpt_oss", "falcon_h1", "falcon"])
def test_artifacts_are_the_same_byte_by_byte(tiny_model, tmp_path, architecture):
    path = tiny_model(architecture)
    files, losses, importance = made(path, tmp_path, FOUR, stream=False)
    same_files, same_losses, same_importance = made(path, tmp_path, FOUR, stream=True)
    assert same_files == files
    assert same_losses == losses
    assert same_importance.keys() == importance.keys()
    for name, values in importance.items():
        assert torch.equal(same_importance[name], values)


def test_hidden_states_of_several_chunks_rest_on_disk(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(capture, "budget", lambda device: 300_000)
    path, rested = tiny_model("llama"), []
    files, _, _ = made(path, tmp_path, FOUR[:1], stream=False)
    original = capture.rest_on_disk

    def rest(chunks, texts):
        found = original(chunks, texts, memory=2 * texts * chunks[0].hidden.nbytes)
        rested.extend(chunk.on_disk for chunk in found)
        return found

    monkeypatch.setattr(grid, "rest_on_disk", rest)
    same_files, _, _ = made(path, tmp_path, FOUR[:1], stream=True)
    assert rested == [False, False, True, True, True, True]
    assert same_files == files


def test_no_more_than_two_layers_are_there_at_a_time(tiny_model, tmp_path, monkeypatch):
    seen = []
    original = grid.require_finite_layer

    def look(module, full_name, spelling):
        original(module, full_name, spelling)
        seen.append(sum(not p.is_meta for p in networks[0].parameters()))

    networks = []
    load = grid.load_network
    monkeypatch.setattr(
        grid, "load_network", lambda *a, **n: networks.append(load(*a, **n)) or networks[-1]
    )
    monkeypatch.setattr(grid, "require_finite_layer", look)
    made(tiny_model("llama"), tmp_path, FOUR[:1], stream=True)
    layer = len(list(networks[0].layer_stream.layers[0].parameters()))
    outside = len(list(networks[0].parameters())) - 2 * layer
    assert seen[0] <= outside + 2 * layer
    assert seen[-1] == outside + layer


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_too_little_memory_is_not_taken_for_layers_that_are_no_chain(
    tiny_model, tmp_path, monkeypatch, error
):
    def fail(*_):
        raise error("found no room")

    monkeypatch.setattr(capture, "run_layer", fail)
    no_chain = error is RuntimeError
    with pytest.raises(CannotStream if no_chain else error, match="no chain|no room"):
        made(tiny_model("llama"), tmp_path, FOUR[:1], stream=True)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_experts_in_stacks_are_rounded_layer_by_layer(tiny_model, tmp_path, device):
    # On the host in either case, whatever the device.
    facts = read_facts(tiny_model("gpt_oss"), "gpt_oss")
    files = []
    for stream in (False, True):
        out = tmp_path / str(stream)
        out.mkdir()
        quantizer = RTN(bits=4, group_size=32)
        quantizer.quantize(SourceModel(facts, device, stream=stream), None, out)
        files.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert files[0] == files[1]


def test_what_fits_is_not_streamed_unless_it_is_asked_for(tiny_model):
    source = SourceModel(read_facts(tiny_model("llama"), "llama"), "cpu", stream="auto")
    whole = grid.load_network(source, beside=1)
    assert not any(p.is_meta for p in whole.parameters())
    streamed = grid.load_network(source, beside=1 << 60)
    assert any(p.is_meta for p in streamed.parameters())


@pytest.mark.parametrize(("dtype", "is_streamed"), [("auto", False), (torch.float32, True)])
def test_weights_count_in_the_dtype_that_they_are_loaded_in(
    tiny_model, monkeypatch, dtype, is_streamed
):
    facts = read_facts(tiny_model("llama"), "llama")  # in bfloat16
    monkeypatch.setattr(room, "available_bytes", lambda: 3 * facts.parameters)
    source = SourceModel(facts, "cpu", stream="auto")
    network = grid.load_network(source, "cpu", dtype, beside=0)
    assert any(p.is_meta for p in network.parameters()) is is_streamed


def test_a_walk_backwards_needs_the_whole_model(tiny_model, tmp_path):
    weighing = NativeGPTQ(bits=4, group_size=32, gptq_output_hessian=True)
    with pytest.raises(CannotStream, match="leave one of the two out"):
        made(tiny_model("llama"), tmp_path, (weighing,), stream=True)


def test_what_cannot_be_streamed_after_all_is_let_go_of_before_the_whole_model_is_loaded(
    tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(room, "available_bytes", lambda: 1)
    load, networks, alive = grid.load_network, [], []

    def watched(*given, **named):
        alive.append([network() is not None for network in networks])
        network = load(*given, **named)
        networks.append(weakref.ref(network))
        return network

    monkeypatch.setattr(grid, "load_network", watched)
    weighing = NativeGPTQ(bits=4, group_size=32, gptq_output_hessian=True)
    made(tiny_model("llama"), tmp_path, (weighing,), stream="auto")
    assert alive == [[], [False]]


@pytest.mark.parametrize("refusal", ["no chain", "experts of its own"])
def test_an_importance_matrix_is_not_measured_on_the_whole_model_either(
    tiny_model, monkeypatch, refusal
):
    if refusal == "no chain":
        monkeypatch.setattr(capture, "_runs_layer_by_layer", lambda *_: False)
    else:
        monkeypatch.setattr(grid, "find_decoder", refuse)
    source = SourceModel(read_facts(tiny_model("llama"), "x"), "cpu", stream=True)
    with pytest.raises(CannotStream, match=f"^model.stream=true: .*{refusal}.*leave model.stream"):
        measure_importance(source, CalibrationTokens(SAMPLES))
    found = measure_importance(replace(source, stream=False), CalibrationTokens(SAMPLES))
    assert found.importance


def refuse(network):
    raise IncompatibleTrial("experts of its own")
