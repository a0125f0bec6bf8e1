"""Estimators on matrices whose Fisher information is known."""

import pytest
import torch

from qsweep.quantizers.sensitivity.estimators import ESTIMATORS, diagonal, fisher, gram, kronecker

GENERATOR = torch.Generator().manual_seed(0)


def drawn(count, outputs=6, channels=5):
    """A softmax over a linear layer's outputs: inputs, and gradients of drawn classes."""
    weight = torch.randn(outputs, channels, generator=GENERATOR)
    inputs = torch.randn(count, channels, generator=GENERATOR)
    chances = torch.softmax(inputs @ weight.T, -1)
    classes = torch.multinomial(chances, 1, generator=GENERATOR).flatten()
    gradients = torch.nn.functional.one_hot(classes, outputs) - chances
    return weight, inputs, gradients


def divergence(weight, error, inputs):
    plain, changed = (torch.log_softmax(inputs @ w.T, -1) for w in (weight, weight + error))
    return float((plain.exp() * (plain - changed)).sum(-1).mean())


@pytest.mark.parametrize("shape", [(6, 5), (5, 6)])
def test_fisher_is_the_divergence_of_a_small_error(shape):
    weight, inputs, gradients = drawn(40_000, *shape)
    error = torch.randn(shape, generator=GENERATOR) * 0.02
    found = fisher(error, inputs, gradients, len(inputs))
    assert found == pytest.approx(divergence(weight, error, inputs), rel=0.03)


def test_what_depends_on_each_other_is_lost_outside_of_fisher():
    weight, inputs, gradients = drawn(40_000)
    # All outputs rise by the same: nothing changes for a softmax.
    error = torch.ones(6, 1) @ torch.randn(1, 5, generator=GENERATOR) * 0.1
    assert divergence(weight, error, inputs) < 1e-9
    assert fisher(error, inputs, gradients, len(inputs)) < 1e-9
    assert kronecker(error, inputs, gradients, len(inputs)) < 1e-6
    assert diagonal(error, inputs, gradients, len(inputs)) > 1e-3
    assert gram(error, inputs, gradients, len(inputs)) > 1e-2


def test_kronecker_and_diagonal_are_fisher_where_inputs_tell_nothing():
    _, inputs, gradients = drawn(40_000)
    inputs = inputs[torch.randperm(len(inputs), generator=GENERATOR)]
    error = torch.zeros(6, 5)
    error[2] = torch.randn(5, generator=GENERATOR)
    expected = fisher(error, inputs, gradients, len(inputs))
    for estimate in (kronecker, diagonal):
        assert estimate(error, inputs, gradients, len(inputs)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_few_tokens_reach_counts_by_how_many(name):
    _, inputs, gradients = drawn(400)
    error = torch.randn(6, 5, generator=GENERATOR)
    all_of_them, a_tenth = (ESTIMATORS[name](error, inputs, gradients, n) for n in (400, 4000))
    assert a_tenth == pytest.approx(all_of_them / 10)
    assert ESTIMATORS[name](error, inputs[:0], gradients[:0], 400) == 0
