"""Models whose decoder layers' weights are there only while they run give what the whole model gives."""

import copy
import ctypes
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qsweep.base.errors import QsweepError
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.formats.numbers import W4A16, FP8Dynamic
from qsweep.models.facts import read_facts
from qsweep.models.layer_list import CannotStream, layers_of
from qsweep.models.source import SourceModel
from qsweep.models.streaming import holding, load_streamed, stream_of
from qsweep.quantizers.rtn import RTN

# What a forward of a model takes whose 14 layers have 17 MB of weights each in float32.
SCRIPT = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from qsweep.evaluate.footprint import ResidentMemory
    from qsweep.formats.artifact import Artifact, Size
    from qsweep.formats.dense import load_dense

    torch.set_num_threads(1)
    source = Path(sys.argv[1])
    config = AutoConfig.for_model(
        "llama", vocab_size=512, hidden_size=512, intermediate_size=2048, num_hidden_layers=14,
        num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(source)
    ids = torch.ones(1, 8, dtype=torch.int64)
    peaks = {}
    for stream in (True, True, False):  # the first time something is imported
        memory = ResidentMemory()
        model = load_dense(
            Artifact(source, "hf", Size(0, 0, 0, 0, 0)), source, dtype=torch.float32, device="cpu",
            stream=stream,
        )
        with torch.no_grad():
            model(ids)
        peaks[stream] = memory.peak_bytes()
        model = None
    print(json.dumps([peaks[True], peaks[False]]))
    """
)
HAS_GLIBC = hasattr(ctypes.CDLL(None), "malloc_trim")
IDS = torch.randint(0, 4096, (2, 48), generator=torch.Generator().manual_seed(3))
# Untied and tied heads, a mixture, a hybrid, sliding windows, classes derived from nn.Linear.
ARCHITECTURES = ["llama", "qwen3", "qwen3_moe", "gpt_oss", "gemma3_text", "falcon_h1", "falcon"]

pytestmark = pytest.mark.usefixtures("one_thread")


def dense(artifact, path, *, stream, dtype=torch.float32):
    return load_dense(artifact, path, dtype=dtype, device="cpu", stream=stream)


def logits(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def loaded(model):
    """Numbers of weights that are in memory."""
    return sum(p.numel() for p in model.parameters() if not p.is_meta)


def anonymous_bytes():
    """What this process holds that no file backs."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_streamed_model_computes_what_the_whole_one_does(tiny_model, architecture, dtype):
    facts = read_facts(tiny_model(architecture), architecture)
    artifact = reference_artifact(facts)
    whole = dense(artifact, facts.path, stream=False, dtype=dtype)
    streamed = dense(artifact, facts.path, stream=True, dtype=dtype)
    assert torch.equal(logits(streamed), logits(whole))
    assert streamed.left_out == whole.left_out
    assert [p.dtype for p in streamed.parameters()] == [p.dtype for p in whole.parameters()]


@pytest.mark.parametrize(
    "quantizer",
    [
        RTN(bits=4, group_size=64),
        RTN(bits=4, group_size=64, format=W4A16()),
        RTN(format=FP8Dynamic()),
    ],
    ids=["gptq", "compressed-tensors", "fp8-dynamic"],
)
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_packed_layers_are_unpacked_when_they_run(tiny_model, tmp_path, architecture, quantizer):
    facts = read_facts(tiny_model(architecture), architecture)
    artifact = quantizer.quantize(SourceModel(facts, "cpu"), None, tmp_path)
    whole = dense(artifact, facts.path, stream=False)
    streamed = dense(artifact, facts.path, stream=True)
    assert torch.equal(logits(streamed), logits(whole))


def test_no_more_than_two_layers_are_there_at_a_time(tiny_model):
    facts = read_facts(tiny_model("llama"), "llama")
    streamed = dense(reference_artifact(facts), facts.path, stream=True)
    outside, layer = (
        loaded(streamed),
        sum(p.numel() for p in stream_of(streamed).layers[0].parameters()),
    )
    assert outside + 2 * layer == facts.parameters
    seen = []
    for module in stream_of(streamed).layers:
        module.register_forward_hook(lambda *_: seen.append(loaded(streamed)), prepend=True)
    logits(streamed)
    assert max(seen) <= outside + 2 * layer
    assert loaded(streamed) == outside


@pytest.mark.slow
def test_resident_memory_is_that_of_a_few_layers(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    streamed, whole = json.loads(result.stdout)
    # 14 layers of 4.2 million weights.
    assert whole > 220e6
    assert streamed < 110e6


@pytest.mark.skipif(not HAS_GLIBC, reason="another C library keeps what is freed in its own way")
def test_what_was_computed_with_a_layer_goes_back_to_the_system(tiny_model):
    path = tiny_model("llama")
    model = dense(reference_artifact(read_facts(path, "x")), path, stream=True)
    before = anonymous_bytes()
    with holding(model, 0):
        blocks, pins = [], []
        for _ in range(64):
            blocks.append(torch.ones(1 << 20))
            pins.append(torch.ones(1 << 17))  # behind which freed memory stays in the heap
        assert anonymous_bytes() > before + 200e6
        del blocks
    assert anonymous_bytes() < before + 100e6


def test_a_layer_that_is_held_is_read_once(tiny_model):
    facts = read_facts(tiny_model("llama"), "llama")
    streamed = dense(reference_artifact(facts), facts.path, stream=True)
    stream = stream_of(streamed)
    with stream.hold(1) as layer:
        weight = layer.self_attn.q_proj.weight
        logits(streamed)
        assert layer.self_attn.q_proj.weight is weight
        assert not copy.deepcopy(layer).self_attn.q_proj.weight.is_meta
    assert layer.self_attn.q_proj.weight.is_meta


def test_some_parameters_of_a_layer_alone(tiny_model):
    facts = read_facts(tiny_model("qwen3_moe"), "qwen3_moe")
    streamed = dense(reference_artifact(facts), facts.path, stream=True)
    name = "model.layers.1.input_layernorm.weight"
    with stream_of(streamed).read(1, {name}):
        there = {n for n, p in streamed.named_parameters() if not p.is_meta and ".layers." in n}
    assert there == {name}


def test_a_layer_that_cannot_be_read_is_told_to_who_wants_it_and_leaves_nothing(tiny_model):
    facts = read_facts(tiny_model("llama"), "llama")
    streamed = dense(reference_artifact(facts), facts.path, stream=True)
    stream, outside = stream_of(streamed), loaded(streamed)
    del stream._sources[1]["model.layers.1.mlp.up_proj.weight"]
    for _ in range(2):  # each time layer 1 is read ahead, in vain
        with stream.hold(0):
            pass
    with (
        pytest.raises(QsweepError, match=r"layers\.1\.mlp\.up_proj\.weight"),
        stream.hold(1),
    ):
        pytest.fail("it was not read")
    assert loaded(streamed) == outside


def test_a_damaged_layer_is_named_when_it_is_read(tiny_model, tmp_path):
    facts = read_facts(tiny_model("llama"), "llama")
    artifact = reference_artifact(facts)
    path = tmp_path / "model"
    path.mkdir()
    for file in facts.path.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QsweepError, match=r"missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        dense(reference_artifact(read_facts(path, "x")), path, stream=True)
    assert artifact.path == facts.path


def test_a_model_that_begins_with_its_layers_is_refused():
    # As CPM-Ant: transformers would take it to lie where its layers do, nowhere.
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
    model.embedding = torch.nn.Embedding(4, 4)
    with pytest.raises(CannotStream, match=r"begins with its layers \(layers\.0\.weight\)"):
        load_streamed(model, {}, {}, "cpu")


def test_layers_that_share_weights_are_refused():
    layers = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
    model = torch.nn.Module()
    model.embedding = torch.nn.Embedding(4, 4)
    model.layers = layers
    assert layers_of(model)[0] == ["layers.0", "layers.1"]
    layers[1].weight = layers[0].weight
    with pytest.raises(CannotStream, match="share weights"):
        load_streamed(model, {}, {}, "cpu")


def test_a_model_without_layers_is_refused():
    with pytest.raises(CannotStream, match="no list of decoder layers"):
        layers_of(torch.nn.Linear(4, 4))
