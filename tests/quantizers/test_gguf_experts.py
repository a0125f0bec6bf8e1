"""Experts in GGUF files: which stack a layer lies in there, and whose importance weighs what."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("gguf")

from gguf import GGUFWriter  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from qsweep.formats.gguf.checkpoint import open_checkpoint  # noqa: E402
from qsweep.formats.gguf.layout import derive, stored_tensor  # noqa: E402
from qsweep.formats.gguf.placement import rows_in_file  # noqa: E402
from qsweep.formats.gguf.reader import read_gguf  # noqa: E402
from qsweep.formats.gguf.rules import Layout, Rule  # noqa: E402
from qsweep.quantizers.conversion.artifact import linear_tensors  # noqa: E402
from qsweep.quantizers.conversion.base import UnquantizedFile  # noqa: E402
from qsweep.quantizers.gguf import _by_tensor  # noqa: E402

EXPERTS, INNER, WIDTH = 3, 32, 64
MLP = "model.layers.0.mlp.experts"
GATE, UP, DOWN = (f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "up", "down"))


def weights():
    generator = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(EXPERTS, INNER, WIDTH, generator=generator) for _ in range(2))
    return gate, up, torch.randn(EXPERTS, WIDTH, INNER, generator=generator)


def one_by_one(gate, up, down):
    for expert in range(EXPERTS):
        yield f"{MLP}.{expert}.gate_proj.weight", gate[expert]
        yield f"{MLP}.{expert}.up_proj.weight", up[expert]
        yield f"{MLP}.{expert}.down_proj.weight", down[expert]


def stacked(gate, up, down):
    yield f"{MLP}.gate_up_proj", torch.cat([gate, up], 1)
    yield f"{MLP}.down_proj", down


def turned_and_interleaved(gate, up, down):
    yield f"{MLP}.gate_up_proj", torch.stack([gate, up], 2).flatten(1, 2).transpose(1, 2)
    yield f"{MLP}.down_proj", down.transpose(1, 2)


def converted(spell, folder):
    """A checkpoint of one layer of experts, and its file as the converter lays it out."""
    gate, up, down = weights()
    tensors = {name: tensor.contiguous() for name, tensor in spell(gate, up, down)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    writer = GGUFWriter(folder / "base.gguf", "qwen3moe")
    made = {GATE: gate, UP: up, DOWN: down}
    for name, tensor in made.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint, file = open_checkpoint(folder), read_gguf(folder / "base.gguf")
    layers = [f"{MLP}.{e}.{p}_proj" for e in range(EXPERTS) for p in ("gate", "up", "down")]
    wanted = {checkpoint.place(layer).tensor for layer in layers}
    layout = derive(checkpoint, file, [(list(tensors), list(made))], [], wanted)
    return layers, UnquantizedFile(folder / "base.gguf", layout, checkpoint)


SPELLINGS = (one_by_one, stacked, turned_and_interleaved)


@pytest.mark.parametrize("spell", SPELLINGS)
def test_experts_layers_are_the_files_stacks(spell, tmp_path):
    layers, base = converted(spell, tmp_path)
    facts = SimpleNamespace(linears=dict.fromkeys(layers, (INNER, WIDTH)))
    assert linear_tensors(facts, base) == {GATE, UP, DOWN}


@pytest.mark.parametrize("spell", SPELLINGS)
def test_importance_lies_expert_after_expert(spell, tmp_path):
    layers, base = converted(spell, tmp_path)
    found = {
        layer: torch.rand(INNER if "down" in layer else WIDTH) + int(layer.split(".")[-2])
        for layer in layers
    }
    for expert in range(EXPERTS):  # both see the same
        found[f"{MLP}.{expert}.up_proj"] = found[f"{MLP}.{expert}.gate_proj"]
    matrices = _by_tensor(found, base)
    assert matrices.keys() == {GATE, UP, DOWN}
    for tensor, part in ((GATE, "gate_proj"), (UP, "gate_proj"), (DOWN, "down_proj")):
        expected = torch.cat([found[f"{MLP}.{expert}.{part}"] for expert in range(EXPERTS)])
        assert torch.equal(matrices[tensor], expected)


@pytest.mark.parametrize("silent", ["missing", "zero", "empty"])
@pytest.mark.parametrize("spell", [one_by_one, stacked])
def test_all_channels_of_an_expert_without_tokens_are_alike(spell, silent, tmp_path):
    layers, base = converted(spell, tmp_path)
    found = {layer: torch.rand(INNER if "down" in layer else WIDTH) for layer in layers}
    for layer in [layer for layer in layers if f"{MLP}.1." in layer]:
        nothing = {"zero": torch.zeros_like(found[layer]), "empty": torch.empty(0)}
        if silent == "missing":
            del found[layer]
        else:
            found[layer] = nothing[silent]
    matrices = _by_tensor(found, base)
    down = matrices[DOWN].view(EXPERTS, INNER)
    assert torch.equal(down[0], found[f"{MLP}.0.down_proj"])
    assert torch.equal(down[1], torch.ones(INNER))
    assert torch.equal(down[2], found[f"{MLP}.2.down_proj"])


def test_without_a_token_in_any_expert_there_is_no_importance(tmp_path):
    layers, base = converted(stacked, tmp_path)
    found = {layer: torch.zeros(INNER if "down" in layer else WIDTH) for layer in layers}
    assert _by_tensor(found, base) == {}


@pytest.mark.parametrize("spell", SPELLINGS)
def test_rows_of_an_expert_are_found_in_the_files_stacks(spell, tmp_path):
    layers, base = converted(spell, tmp_path)
    own = dict(zip(("gate_proj", "up_proj", "down_proj"), weights(), strict=True))
    file = read_gguf(base.path)
    for layer in layers:
        *_, expert, part = layer.split(".")
        rows = own[part][int(expert)]
        ((tensor, indices, placed),) = rows_in_file(layer, rows, base.layout, base.checkpoint)
        stored = stored_tensor(file, tensor)
        assert torch.equal(stored.reshape(-1, stored.shape[-1])[indices], placed)


def test_rows_of_a_gate_that_is_stored_with_what_it_lets_through(tmp_path):
    gate, up, down = weights()
    both = torch.cat([gate, up], 1)
    save_file(
        {f"{MLP}.gate_up_proj": both, f"{MLP}.down_proj": down}, tmp_path / "model.safetensors"
    )
    checkpoint = open_checkpoint(tmp_path)
    layout = Layout({f"{MLP}.gate_up_proj": Rule("blk.0.ffn_gate_up_exps.weight")}, {})
    for part, rows in (("gate_proj", gate), ("up_proj", up)):
        ((_, indices, _),) = rows_in_file(f"{MLP}.2.{part}", rows[2], layout, checkpoint)
        assert torch.equal(both.flatten(0, 1)[indices], rows[2])
