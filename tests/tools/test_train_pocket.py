"""tools/train_pocket.py: the models that tests keep are what their cards say, and made as told."""

import re
from argparse import Namespace

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import train_pocket
from qsweep.models.tiny import MODEL_DIR, text
from train_pocket import SMALL, expert_shares, held_out_windows, perplexity

KEPT = {"moe": "mixture_dir", "hybrid": "hybrid_dir"}


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def prose():
    return "\n\n".join(text.documents("docs", "test"))


@pytest.fixture(params=KEPT.items(), ids=KEPT)
def kept(request):
    """The name of one of the small models, and its directory."""
    name, fixture = request.param
    return name, request.getfixturevalue(fixture)


def test_every_small_model_is_kept():
    assert KEPT.keys() == SMALL.keys()


def test_a_kept_model_predicts_as_well_as_its_card_says(kept, tokenizer, prose):
    _, path = kept
    card = (path / "README.md").read_text()
    said, unigrams = (
        float(re.search(rf"\| {row} \| prose ([\d.]+)", card)[1])
        for row in ("held-out perplexity", "of unigrams there")
    )
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    windows = held_out_windows(model, tokenizer, prose)
    # Each version of Python has a text of its own, if nearly the same.
    assert perplexity(model, windows) == pytest.approx(said, rel=0.05)
    assert said < unigrams / 5
    if (shares := expert_shares(model, windows[:8])) is not None:
        assert shares.shape == (model.config.num_hidden_layers, model.config.num_experts)
        assert shares.sum(dim=1) == pytest.approx(1)
        assert shares.min() > 0.25 / model.config.num_experts  # no expert is dead


def test_a_kept_model_is_small_and_its_widths_are_whole_groups(kept, tokenizer):
    name, path = kept
    assert sum(file.stat().st_size for file in path.iterdir()) < 4_200_000
    shapes, built = (
        {n: p.shape for n, p in model.named_parameters()}
        for model in (
            AutoModelForCausalLM.from_pretrained(path),
            train_pocket.build_model(tokenizer, name),
        )
    )
    assert shapes == built
    matrices = [s for n, s in shapes.items() if len(s) > 1 and "conv" not in n]
    assert all(shape[-1] % 128 == 0 for shape in matrices)


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_makes_a_model(tokenizer, tmp_path, name):
    arguments = Namespace(
        seed=3, steps=2, window=32, batch_tokens=64, save_every=100, resume=False, device="cpu"
    )
    stream = torch.randint(0, 4096, (2000,), generator=torch.Generator().manual_seed(0))

    def trained():
        torch.manual_seed(arguments.seed)
        model = train_pocket.build_model(tokenizer, name)
        model.config.max_position_embeddings = 64
        before = {n: p.clone() for n, p in model.named_parameters()}
        train_pocket.train(model, stream, arguments, tmp_path)
        return before, dict(model.named_parameters())

    (before, first), (_, second) = trained(), trained()
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not any(torch.equal(first[n], before[n]) for n in first)


def test_matrices_of_a_stack_are_made_orthogonal_each_by_itself():
    stack = torch.randn(3, 40, 24, generator=torch.Generator().manual_seed(0))
    stack[1] *= 100
    together = train_pocket.orthogonalize(stack)
    for alone, found in zip(stack, together, strict=True):
        assert torch.allclose(train_pocket.orthogonalize(alone), found, atol=1e-5)
        # Five steps bring the singular values near one, not to it.
        values = torch.linalg.svdvals(found)
        assert 0.5 < values.min() <= values.max() < 1.3


def test_balance_is_asked_of_each_layer():
    config = Namespace(num_experts=8, num_experts_per_tok=2)
    # Each layer sends all to two experts, and all layers together the same to each.
    layers = [torch.zeros(6, 8) for _ in range(4)]
    for number, logits in enumerate(layers):
        logits[:, 2 * number : 2 * number + 2] = 99
    assert train_pocket.imbalance(layers, config) == pytest.approx(4)
    even = torch.zeros(4, 8)
    for number, logits in enumerate(even):
        logits[2 * number : 2 * number + 2] = 99
    assert train_pocket.imbalance([even], config) == pytest.approx(1)
