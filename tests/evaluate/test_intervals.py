"""Intervals at one number of windows, and at every number at once."""

import math

import numpy as np
import pytest

from qsweep.evaluate.draws import Draws, difference
from qsweep.evaluate.intervals import (
    PHI,
    half_width,
    sequence_p,
    sequence_t,
    student_t,
)
from qsweep.evaluate.pairs import compare_pairs


def test_a_settled_number_of_windows_has_students_interval():
    assert half_width(0.5, 12) == 0.5 * student_t(11)
    assert half_width(0.5, 12, confidence=0.9) == 0.5 * student_t(11, 0.9)


def test_a_sequence_excludes_exactly_what_its_e_process_does():
    """E is the ratio of the marginal likelihoods, here by numerical integration over the effect."""
    from scipy.stats import nct, t

    n, freedom = 20, 19
    at = sequence_t(n)
    effects = np.linspace(-6, 6, 20001) / math.sqrt(PHI)
    prior = np.exp(-PHI * effects**2 / 2) * math.sqrt(PHI / (2 * math.pi))
    mixed = np.trapezoid(nct.pdf(at, freedom, effects * math.sqrt(n)) * prior, effects)
    assert mixed / t.pdf(at, freedom) == pytest.approx(20, rel=1e-6)  # 1 / 5 %
    assert sequence_p(np.array([at]), np.array([n])) == pytest.approx([0.05])


def test_over_many_windows_it_is_the_asymptotic_sequence():
    # Waudby-Smith et al., theorem 2.2, with rho^2 = 1 / phi
    n, alpha = 10_000, 0.05
    wide = n / PHI + 1
    theirs = math.sqrt(2 * wide / (n**2 / PHI) * math.log(math.sqrt(wide) / alpha)) * math.sqrt(n)
    assert sequence_t(n) == pytest.approx(theirs, rel=1e-3)


def test_too_few_windows_exclude_nothing_even_where_they_are_alike():
    assert sequence_t(6) == math.inf and sequence_t(1) == math.inf
    assert half_width(0.0, 6, sequential=True) == math.inf
    assert half_width(0.0, 12, sequential=True) == 0.0


def test_whoever_looks_at_every_window_is_wrong_one_time_in_twenty_at_most():
    """4000 texts of 400 windows; Student's t, looked at as often, is wrong every other time."""
    runs, windows = 4000, 400
    values = np.random.default_rng(0).normal(size=(runs, windows))
    n = np.arange(12, windows + 1)
    means = values.cumsum(1)[:, n - 1] / n
    spread = ((values**2).cumsum(1)[:, n - 1] - n * means**2) / (n - 1)
    t = np.abs(means) / np.sqrt(spread / n)
    held = t <= np.array([sequence_t(int(one)) for one in n])
    assert held.all(1).mean() >= 0.95
    single = t <= np.array([student_t(int(one) - 1) for one in n])
    assert single.all(1).mean() < 0.7 and 0.94 < single[:, -1].mean() < 0.96


def test_pairs_of_which_one_was_stopped_are_compared_on_what_both_read_and_at_any_stop():
    rng = np.random.default_rng(3)
    counts = np.full(40, 100)
    sums = 100 * (np.array([[1.0], [1.01], [1.5]]) + 0.01 * rng.normal(size=(3, 40)))
    read = np.ones((3, 40), bool)
    read[2, 16:] = False
    sums[2, 16:] = 1e9  # nobody looks at it
    looked = np.array([False, False, True])
    models = [Draws(one[None]) for one in sums]
    found = compare_pairs(models, counts, read=read, sequential=looked)
    alone = compare_pairs(models[:2], counts)
    p = dict(zip(found.pairs, found.p, strict=True))
    assert found.pairs == [(0, 1), (0, 2), (1, 2)] and p[0, 1] == pytest.approx(alone.p[0])
    d = (sums[2, :16] - sums[0, :16]) / 100
    t = d.mean() / (d.std(ddof=1) / 4)
    assert p[0, 2] == pytest.approx(sequence_p(np.array([t]), np.array([16]))[0])
    few = compare_pairs(models, counts, read=read, sequential=looked, least=17)
    assert few.pairs == [(0, 1)]


def test_differences_that_are_all_the_same_are_no_noise():
    found = sequence_p(np.array([np.inf, -np.inf, 0.0]), np.array([12, 12, 12]))
    assert found.tolist() == [0.0, 0.0, 1.0]


def test_draws_beside_a_stopped_model_are_told_apart_where_their_interval_leaves_out_none():
    rng = np.random.default_rng(1)
    counts = np.full(24, 100)
    for gap in (0.001, 0.003, 0.005, 0.008, 0.012):
        drawn = 100 * (1 + gap + 0.004 * rng.normal(size=(3, 1)) + 0.004 * rng.normal(size=(3, 24)))
        models = [Draws(drawn, (0, 1, 2)), Draws(100 * (1 + 0.004 * rng.normal(size=(1, 24))))]
        looked = np.array([False, True])
        p = compare_pairs(models, counts, sequential=looked).p[0]
        apart = difference(*models, counts)
        half = apart.half(sequential=True)
        assert (p < 0.05) == (abs(apart.value) > half)
        assert apart.half(1 - p, sequential=True) == pytest.approx(abs(apart.value), rel=1e-3)
