"""The knapsack: exact, within its limit, and other than what is known already."""

import itertools

import numpy as np
import pytest

from qsweep.search.budget.knapsack import solve


def _random(seed: int, groups: int = 6, options: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    bits = np.sort(generator.integers(10, 100, (groups, options)), 1)[:, ::-1].astype(float)
    # What costs more bits costs less divergence, over orders of magnitude.
    losses = np.sort(10.0 ** generator.uniform(-6, 0, (groups, options)), 1)
    return losses, bits


def _best(losses: np.ndarray, bits: np.ndarray, limit: float) -> float:
    rows = range(len(losses))
    choices = itertools.product(range(losses.shape[1]), repeat=len(losses))
    within = [c for c in choices if bits[rows, c].sum() <= limit]
    return min((losses[rows, c].sum() for c in within), default=np.inf)


@pytest.mark.parametrize("seed", range(8))
def test_is_the_best_of_all_choices(seed):
    losses, bits = _random(seed)
    for share in (0.2, 0.5, 0.8):
        limit = bits.min(1).sum() + share * (bits.max(1).sum() - bits.min(1).sum())
        choice = solve(losses, bits, limit)
        rows = range(len(losses))
        assert bits[rows, choice].sum() <= limit
        assert losses[rows, choice].sum() == pytest.approx(_best(losses, bits, limit), rel=2e-4)


def test_nothing_is_small_enough():
    losses, bits = _random(1)
    assert solve(losses, bits, bits.min(1).sum() - 1) is None
    assert solve(losses, bits, bits.min(1).sum()) is not None


def test_a_group_never_gets_what_it_cannot_have():
    losses, bits = _random(2)
    losses[0, :-1] = np.inf
    losses[1, -1] = np.inf
    choice = solve(losses, bits, bits.max(1).sum())
    assert choice[0] == losses.shape[1] - 1
    assert choice[1] != losses.shape[1] - 1
    assert solve(np.full((2, 2), np.inf), np.ones((2, 2)), 10) is None


@pytest.mark.parametrize("distance", [1, 2, 5, 99])
def test_others_are_as_far_away_as_they_are_to_be(distance):
    losses, bits = _random(3)
    limit = bits.mean() * len(bits)
    found = []
    for _ in range(3):
        choice = solve(losses, bits, limit, tuple(found), distance)
        if choice is None:
            break
        for other in found:
            differ = sum(a != b for a, b in zip(choice, other, strict=True))
            assert differ >= min(distance, len(losses))
        found.append(choice)
    assert len(found) >= 2
    rows = range(len(losses))
    costs = [losses[rows, c].sum() for c in found]
    assert costs == sorted(costs)


def test_losses_far_below_the_solvers_tolerance_count():
    # Eight bits cost 1e-9 nats where two cost 1e-1.
    losses = np.array([[1e-9, 1e-10], [1e-9, 1e-12]])
    bits = np.array([[1.0, 2.0], [1.0, 2.0]])
    assert solve(losses, bits, 3.0) == (0, 1)


def test_a_large_model_takes_no_time():
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 5, 400) * 1e7
    bits = np.outer(sizes, [2.1, 2.3, 3.1, 3.3, 4.2, 4.6, 8.3])
    losses = np.outer(sizes * 10.0 ** generator.uniform(-12, -9, 400), 4.0 ** -np.arange(7.0))
    choice = solve(losses, bits, 3.5 * sizes.sum())
    used = bits[range(400), choice].sum() / sizes.sum()
    assert 3.49 < used <= 3.5


def test_the_solvers_own_lines_stay_off_the_output(capfd, monkeypatch):
    import os

    import scipy.optimize

    real = scipy.optimize.milp

    def talkative(*arguments, **options):
        os.write(1, b"HighsMipSolverData says something\n")
        return real(*arguments, **options)

    monkeypatch.setattr(scipy.optimize, "milp", talkative)
    print("before")
    assert solve(np.array([[1.0, 2.0]]), np.array([[8.0, 4.0]]), 4.0) == (1,)
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"
