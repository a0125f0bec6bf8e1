"""The walk backwards, layer by layer, beside autograd's graph of the whole model."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from miniatures import miniature
from qsweep.models.experts import attach_experts, attached, run_experts
from qsweep.quantizers.native import capture as capturing
from qsweep.quantizers.native import gradients as walking
from qsweep.quantizers.native.drawing import Draws
from qsweep.quantizers.native.gradients import gradients
from qsweep.quantizers.native.graph import named_linears

SAMPLES = torch.randint(5, 400, (4, 40), generator=torch.Generator().manual_seed(0)).tolist()
ENDS = ("head", "embedding")


def load(path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.eval().requires_grad_(False)
    attach_experts(model)
    return model


def products(network, samples=SAMPLES, **options):
    """Of each layer that the walk meets Σ g xᵀ [out, in]; of embeddings [vocabulary, width]."""
    found = {}
    for together in gradients(network, samples, "cpu", ends=ENDS, **options):
        for seen in together:
            assert seen.name not in found or seen.kind == "head"
            assert seen.tokens == sum(map(len, samples))
            found[seen.name, seen.kind] = product(seen.module, seen.inputs, seen.gradients)
    return found


def product(module, inputs, felt):
    if inputs.is_floating_point():
        return felt.T @ inputs
    rows = torch.zeros(len(module.weight), felt.shape[1])
    return rows.index_add_(0, inputs, felt)


def plain(network, samples=SAMPLES, seed=0):
    """The same by one graph of the whole model."""
    ids = torch.tensor(samples)
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    found, handles = {}, []
    for _, holder in attached(network):
        holder.forward = run_experts(holder)
    named = [(own, module, "linear") for _, module, own in named_linears(network)]
    named = [one for one in named if one[1] is not head]
    spelt = {module: name for name, module in network.named_modules()}
    named += [(spelt[head], head, "head"), (spelt[embedding], embedding, "embedding")]
    for name, module, kind in named:

        def look(module, inputs, output, name=name, kind=kind):
            if not output.requires_grad:
                output = output.detach().requires_grad_() * 1

            def keep(felt):
                flat = inputs[0].flatten(0, -2) if kind != "embedding" else inputs[0].flatten()
                one = product(module, flat.detach(), felt.flatten(0, -2))
                found[name, kind] = found.get((name, kind), 0) + one

            output.register_hook(keep)
            return output

        handles.append(module.register_forward_hook(look))
    Draws([ids], seed).score(
        0, slice(None), network(input_ids=ids, use_cache=False).logits
    ).backward()
    for handle in handles:
        handle.remove()
    for _, holder in attached(network):
        del holder.forward
    return found


def require_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert (value - expected[name]).norm() <= 1e-3 * expected[name].norm() + 1e-5, name


@pytest.mark.parametrize("fixture", ["pocket_dir", "mixture_dir", "hybrid_dir"])
def test_layer_by_layer_is_what_one_graph_of_the_model_gives(request, fixture):
    network = load(request.getfixturevalue(fixture))
    found, expected = products(network), plain(network)
    # An expert that no token reaches is met with nothing.
    require_same({k: v for k, v in found.items() if k in expected}, expected)
    assert not any(value.any() for name, value in found.items() if name not in expected)


@pytest.mark.parametrize("architecture", ["gemma3_text", "gpt_neox", "mamba", "falcon_h1"])
def test_so_it_is_for_other_families(tiny_model, architecture):
    network = load(tiny_model(architecture))
    require_same(products(network), plain(network))


@pytest.mark.parametrize("model_type", ["bloom", "gpt2"])
def test_layers_that_hand_on_tuples_and_transposed_ones(tmp_path, model_type):
    network = load(miniature(model_type, tmp_path / "model"))
    require_same(products(network), plain(network))


@pytest.mark.parametrize("alike", ["weight", "layer"])
def test_a_model_that_is_no_chain_of_layers_runs_as_a_whole(tiny_model, alike):
    network = load(tiny_model("llama"))
    layers = network.model.layers
    if alike == "weight":
        layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    else:
        layers[1] = layers[0]
    found = products(network)
    require_same(found, plain(network))
    assert ("model.layers.1.mlp.up_proj", "linear") not in found


def test_little_memory_changes_nothing(pocket_dir, monkeypatch):
    network = load(pocket_dir)
    samples = [*SAMPLES, SAMPLES[0][:24], SAMPLES[1][:24]]
    expected = products(network, samples)
    monkeypatch.setattr(capturing, "budget", lambda device: 300_000)
    monkeypatch.setattr(walking, "budget", lambda device: 4_000_000)
    require_same(products(network, samples), expected)
    # With still less the layers of a decoder layer come one after another, and of the head's
    # gradients, which are as wide as the vocabulary, as many are kept as there is room for.
    monkeypatch.setattr(walking, "budget", lambda device: 300_000)
    met = list(gradients(network, samples, "cpu", ends=ENDS))
    assert len(met) > 10
    assert met[0][0].kind == "head"
    assert met[0][0].tokens == len(met[0][0].inputs) == 40
    found = {s.name: product(s.module, s.inputs, s.gradients) for some in met for s in some}
    linears = {name: value for (name, kind), value in expected.items() if kind == "linear"}
    require_same({name: found[name] for name in linears}, linears)


def test_the_seed_decides_on_what_is_drawn(pocket_dir):
    network = load(pocket_dir)
    first, again, other = (products(network, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not any(torch.equal(value, other[name]) for name, value in first.items())


def test_tokens_are_drawn_as_often_as_they_are_predicted():
    logits = torch.randn(1, 1, 7, generator=torch.Generator().manual_seed(0)) * 2
    many = logits.expand(4, 5000, 7).clone().requires_grad_()
    Draws([torch.zeros(4, 5000, dtype=torch.int64)], 0).score(0, slice(None), many).backward()
    # The gradient is one for the drawn token less the probabilities: it vanishes on average.
    drawn = (many.grad + torch.softmax(logits, -1)).mean((0, 1))
    assert torch.allclose(drawn, torch.softmax(logits, -1)[0, 0], atol=0.015)


def test_a_model_is_left_as_it_was(mixture_dir):
    network = load(mixture_dir)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    list(gradients(network, SAMPLES, "cpu", ends=ENDS))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert not any("forward" in module.__dict__ for module in network.modules())


def test_tied_weights_are_met_as_head_and_as_embeddings(tiny_model):
    network = load(tiny_model("qwen3"))
    assert AutoConfig.from_pretrained(tiny_model("qwen3")).tie_word_embeddings
    assert network.lm_head.weight is network.model.embed_tokens.weight
    found = products(network)
    assert {("lm_head", "head"), ("model.embed_tokens", "embedding")} <= found.keys()
