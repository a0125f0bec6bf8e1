"""bitsandbytes checkpoints that transformers saved, against its own dequantization and run."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file

from helpers.quantized import by_transformers, change, dense, logits, refused
from qsweep.base.errors import ArtifactCorrupt, BackendUnavailable
from qsweep.formats.artifact import Artifact, Size
from qsweep.formats.bitsandbytes import CONTAINER
from qsweep.formats.dense import load_dense
from qsweep.formats.recognize import recognize

pytest.importorskip("bitsandbytes", reason='pip install "qsweep[bitsandbytes]"')

Q = "model.layers.0.self_attn.q_proj"
STATE = f"{Q}.weight.quant_state.bitsandbytes__nf4"


def settings(kind):
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind.removesuffix("-double"),
        bnb_4bit_use_double_quant=kind.endswith("-double"),
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


# What its layers are called, how many bits they take, and how far transformers' own run in bfloat16
# is from the dense one, as a share of the largest logit: LLM.int8() rounds activations to 8 bits.
@pytest.mark.parametrize(
    ("kind", "called", "bpw", "floor"),
    [
        ("nf4", "nf4 block 64", 4.5, 0.02),
        ("nf4-double", "nf4 block 64 double", 4.13, 0.02),
        ("fp4-double", "fp4 block 64 double", 4.13, 0.02),
        ("int8", "int8 channel", 8.1, 0.06),
    ],
)
def test_every_weight_is_the_owners(tiny_model, tmp_path, kind, called, bpw, floor):
    source, path = tiny_model("llama"), tmp_path / kind
    model = by_transformers(source, path, settings(kind))
    # Before it runs: some CPUs' kernels take its codes in another order from then on.
    theirs = {
        name: owners(layer)
        for name, layer in model.named_modules()
        if name.rpartition(".")[2].endswith("_proj")
    }
    run = logits(model)
    ours = dense(path, source)
    container = recognize(path)
    assert container.name == "bitsandbytes"
    assert {t.type for t in container.stored(path) if t.quantized} == {called}
    assert container.size(path).bpw == pytest.approx(bpw, abs=0.15)
    for name, parameter in ours.named_parameters():
        if "_proj" in name:
            assert torch.equal(parameter, theirs[name.removesuffix(".weight")]), name
    difference = (logits(dense(path, source, torch.bfloat16)) - run).abs().max()
    assert 0 <= difference < floor * run.abs().max()


def owners(layer):
    """A layer's weight, by the library."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    weight = layer.weight
    if weight.dtype == torch.int8:
        found = weight.SCB if layer.state.SCB is None else layer.state.SCB
        return int8_vectorwise_dequant(weight.data, found)
    return dequantize_4bit(weight.data, weight.quant_state).float()


def test_codes_that_are_stored_as_another_dtype(tiny_model, tmp_path):
    # bnb_4bit_quant_storage: the same bytes, seen as bfloat16.
    source, path = tiny_model("llama"), tmp_path / "nf4"
    by_transformers(source, path, settings("nf4"))
    expected = logits(dense(path, source))

    def view(tensors):
        for name in [name for name, tensor in tensors.items() if tensor.shape[1:] == (1,)]:
            tensors[name] = tensors[name].flatten().view(torch.bfloat16)[:, None]

    change(path, view)
    assert torch.equal(logits(dense(path, source)), expected)
    assert recognize(path).size(path).bpw == pytest.approx(4.5, abs=0.15)


def test_a_model_of_transposed_layers(tmp_path, pocket_dir):
    # transformers turns the weights of GPT-2 over before it quantizes them.
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=4096, n_positions=64)
    GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(tmp_path / "source")
    model = by_transformers(tmp_path / "source", tmp_path / "nf4", settings("nf4"))
    ours = dense(tmp_path / "nf4", tmp_path / "source")
    for name, parameter in ours.named_parameters():
        if ".c_" in name and name.endswith(".weight"):
            layer = model.get_submodule(name.removesuffix(".weight"))
            assert torch.equal(parameter, owners(layer).T), name


def blob(tensor):
    return json.loads(bytes(tensor.tolist()))


def packed(content):
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def restate(**stated):
    return lambda t: t.update({STATE: packed(blob(t[STATE]) | stated)})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop(f"{Q}.weight.absmax"), f"{Q} has no absmax"),
        (lambda t: t.pop(f"{Q}.weight"), f"{Q} has no weight"),
        (lambda t: t.pop(STATE), f"{Q} has no quant_state.bitsandbytes__nf4"),
        (
            lambda t: t.update({STATE: torch.full((20,), 0xFE, dtype=torch.uint8)}),
            f"{Q}.weight cannot be read",
        ),
        (lambda t: t.update({STATE: packed([1])}), f"{Q}.weight cannot be read"),
        (restate(shape=[512, 512]), r"32768 bytes of codes for weights of \[512, 512\]"),
        (restate(blocksize=128), "1024 scales, where 512 belong"),
        (restate(dtype="load"), f"{Q}.weight cannot be read"),
        (
            lambda t: t.update({f"{Q}.weight.absmax": torch.ones(7)}),
            "7 scales, where 1024 belong",
        ),
    ],
)
def test_damage_is_one_line(tiny_model, tmp_path, edit, said):
    source, path = tiny_model("llama"), tmp_path / "nf4"
    by_transformers(source, path, settings("nf4"))
    change(path, edit)
    refused(path, source, said)


def test_int8_without_its_scales(tiny_model, tmp_path):
    source, path = tiny_model("llama"), tmp_path / "int8"
    by_transformers(source, path, settings("int8"))
    tensors = load_file(path / "model.safetensors")
    assert f"{Q}.SCB" in tensors
    change(path, lambda t: t.update({f"{Q}.SCB": torch.ones(3)}))
    with pytest.raises(
        ArtifactCorrupt, match=r"SCB of the shape \[3\] for weights of \[256, 256\]"
    ):
        dense(path, source)
    change(path, lambda t: t.pop(f"{Q}.SCB"))
    with pytest.raises(ArtifactCorrupt, match=f"{Q} has no SCB"):
        dense(path, source)


def test_the_library_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    artifact = Artifact(tmp_path, "bitsandbytes", Size(0, 0, 0, 0, 0))
    with pytest.raises(BackendUnavailable, match=r'pip install "qsweep\[bitsandbytes\]"'):
        load_dense(artifact, tmp_path, dtype=torch.float32, device="cpu")
    assert CONTAINER.name == "bitsandbytes"
