"""Intervals over windows and draws: known answers, and how often they hold the truth."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from qsweep.evaluate.draws import (
    Draws,
    Estimate,
    Part,
    difference,
    estimate,
    from_figures,
    p_values,
)
from qsweep.evaluate.intervals import student_t
from qsweep.evaluate.metrics import clustered_mean

COUNTS = np.array([511.0] * 20 + [3.0] * 12)


def sums(draws, windows=32, seed=0, *, effect=0.0, left=1.0, counts=COUNTS):
    rng = np.random.default_rng(seed)
    window = rng.standard_normal(windows)
    drawn = effect * rng.standard_normal((draws, 1))
    return (window + drawn + left * rng.standard_normal((draws, windows))) * counts


def test_one_draw_is_what_windows_alone_say():
    one = sums(1)
    found, known = estimate(one, COUNTS), clustered_mean(one[0], COUNTS)
    assert found.value == pytest.approx(known.value, rel=1e-12)
    assert found.half() == pytest.approx(student_t(31) * known.stderr, rel=1e-12)


def test_two_draws_of_two_windows_by_hand():
    """y = [[0, 2], [4, 10]]: means of draws 1 and 7, of windows 2 and 6, of all 4.

    MS windows = 2 * (4 + 4) = 16, MS draws = 2 * (9 + 9) = 36; with two draws nothing is taken off.
    """
    found = estimate(np.array([[0.0, 2.0], [4.0, 10.0]]), np.ones(2))
    assert found.value == 4
    assert [(part.variance, part.freedom) for part in found.parts] == [(4, 1), (9, 1)]
    assert found.half() == pytest.approx(student_t(1) * (4 + 9) ** 0.5)


def test_three_draws_take_half_of_what_is_left_over_off():
    """(S - 2) / (S - 1) of it; with two draws none, with many nearly all."""
    y = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    rest = y - y.mean(0) - y.mean(1)[:, None] + y.mean()
    left = (rest**2).sum() / 2
    between = 2 * ((y.mean(1) - 1) ** 2).sum() / 2
    over_windows, over_draws = estimate(y, np.ones(2)).parts
    assert over_draws.variance == pytest.approx((between - left / 2) / 6)
    assert over_windows.variance == pytest.approx(3 * ((y.mean(0) - 1) ** 2).sum() / 1 / 6)


def test_draws_that_say_the_same_add_nothing():
    one = sums(1)
    found, alone = estimate(np.repeat(one, 5, 0), COUNTS), estimate(one, COUNTS)
    assert found.parts[1].variance == 0
    assert found.half() == pytest.approx(alone.half()) and found.p == pytest.approx(alone.p)


def test_windows_weigh_by_their_tokens():
    """A draw's effect alone, the same for each token: no window says other than its draw."""
    effects = np.array([[0.1], [0.3], [0.2], [0.6]])
    over_windows, over_draws = estimate(effects * COUNTS, COUNTS).parts
    assert over_windows.variance == pytest.approx(0, abs=1e-20)
    assert over_draws.variance == pytest.approx(effects.var(ddof=1) / 4)


def test_a_single_window_tells_nothing():
    found = estimate(np.array([[1.0], [2.0]]), np.ones(1))
    assert found.parts == () and found.half() == np.inf and found.p == 1


@pytest.mark.parametrize("level", [0.2, 0.05, 1e-3, 1e-9])
def test_p_is_where_the_interval_ends(level):
    parts = estimate(sums(4, effect=1.0), COUNTS).parts
    edge = Estimate(0.0, parts).half(1 - level)
    # 1 - 1e-9 itself is known to 1e-7 of 1e-9 only
    assert Estimate(edge, parts).p == pytest.approx(level, rel=1e-5)
    assert Estimate(-edge, parts).p == pytest.approx(level, rel=1e-5)


def test_p_of_many_at_once_is_that_of_each():
    found = [
        estimate(sums(4, seed=1), COUNTS),
        estimate(sums(1, seed=2), COUNTS),
        Estimate(0.0, (Part(1.0, 3),)),
        Estimate(0.1, (Part(0.0, 3),)),
        Estimate(1.0),
    ]
    assert list(p_values(found)) == pytest.approx([one.p for one in found])
    assert [one.p for one in found[2:]] == [1, 0, 1]
    t = found[1].value / found[1].parts[0].variance ** 0.5
    assert found[1].p == pytest.approx(2 * stats.t.sf(abs(t), 31))
    assert len(p_values([])) == 0


def test_draws_of_the_same_seeds_are_paired_in_whatever_order():
    text = sums(3, effect=5.0)
    better = Draws(text, (0, 1, 2))
    worse = Draws((text + 0.01 * COUNTS)[[2, 0, 1]], (2, 0, 1))
    found = difference(worse, better, COUNTS)
    assert found.value == pytest.approx(0.01) and found.half() < 1e-9
    # of other seeds the draws move both, and nothing can be told
    apart = difference(Draws(worse.sums, (7, 8, 9)), better, COUNTS)
    assert apart.half() > 1


def test_only_shared_seeds_are_paired_where_a_draw_failed():
    text = sums(4, effect=5.0)
    one, other = Draws(text[[0, 1, 3]], (0, 1, 3)), Draws(text, (0, 1, 2, 3))
    assert difference(one, other, COUNTS).value == 0


def test_what_rests_on_no_draw_is_the_same_beside_each():
    drawn, fixed = sums(3, effect=1.0), sums(1, seed=5)
    found = difference(Draws(drawn, (0, 1, 2)), Draws(fixed), COUNTS)
    assert found == estimate(drawn - fixed, COUNTS)


def test_what_was_drawn_once_varies_as_the_others_draws_do():
    drawn, once = sums(3, effect=1.0), sums(1, seed=5)
    found = difference(Draws(drawn, (0, 1, 2)), Draws(once, (9,)), COUNTS)
    as_if_fixed = estimate(drawn - once, COUNTS)
    assert found.value == as_if_fixed.value and found.parts[0] == as_if_fixed.parts[0]
    # the mean of three draws, and one more draw
    assert found.parts[1].variance == pytest.approx(4 * as_if_fixed.parts[1].variance)
    assert found.parts[1].freedom == 2
    back = difference(Draws(once, (9,)), Draws(drawn, (0, 1, 2)), COUNTS)
    assert (back.value, back.half()) == pytest.approx((-found.value, found.half()))


def test_two_that_were_drawn_once_are_told_by_windows_alone():
    one, other = sums(1, effect=1.0), sums(1, seed=5)
    found = difference(Draws(one, (0,)), Draws(other, (1,)), COUNTS)
    assert found == estimate(one - other, COUNTS) and len(found.parts) == 1


def test_a_single_draw_beside_several_is_covered_as_often_as_it_says():
    rng = np.random.default_rng(1)
    counts = np.full(12, 511.0)
    hits = {"drawn": 0, "as if fixed": 0}
    for _ in range(800):
        text = rng.standard_normal((1, 12))
        several, once = (
            (text + rng.standard_normal((n, 1)) + rng.standard_normal((n, 12))) * counts
            for n in (4, 1)
        )
        for name, seeds in (("drawn", (9,)), ("as if fixed", ())):
            found = difference(Draws(several, (0, 1, 2, 3)), Draws(once, seeds), counts)
            hits[name] += abs(found.value) <= found.half()
    assert 0.93 < hits["drawn"] / 800 < 0.98
    assert hits["as if fixed"] / 800 < 0.85  # what it would be to take that draw for all


def test_other_seeds_add_their_parts_with_the_freedom_of_welch():
    one, other = sums(3, seed=1, effect=2.0), sums(5, seed=2, effect=1.0)
    found = difference(Draws(one, (0, 1, 2)), Draws(other, (5, 6, 7, 8, 9)), COUNTS)
    a, b = (estimate(side, COUNTS).parts[1] for side in (one, other))
    assert found.parts[1].variance == pytest.approx(a.variance + b.variance)
    least = a.variance**2 / 2 + b.variance**2 / 4
    assert found.parts[1].freedom == pytest.approx((a.variance + b.variance) ** 2 / least)


def test_figures_without_windows_make_the_wider_interval():
    """Of the same draws, windows at hand or not."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        y = rng.standard_normal((4, 24)) + rng.standard_normal((4, 1)) + rng.standard_normal(24)
        alone = [clustered_mean(draw, np.ones(24)) for draw in y]
        found = from_figures([one.value for one in alone], [one.stderr for one in alone], 24)
        whole = estimate(y, np.ones(24))
        assert found.value == pytest.approx(whole.value) and found.half() > whole.half()


@pytest.mark.parametrize(("draws", "least", "most"), [(2, 0.93, 1.0), (4, 0.93, 0.985)])
def test_it_holds_the_truth_as_often_as_it_says(draws, least, most):
    """Heavy tails, few windows; ``bench/coverage.py`` does this at length."""
    rng = np.random.default_rng(0)
    counts = np.full(12, 511.0)
    for effect in (0.0, 1.0):
        hits = 0
        for _ in range(800):
            text = rng.standard_t(3, (1, 12)) / 3**0.5
            left = rng.standard_t(3, (draws, 12)) / 3**0.5
            found = estimate(
                (text + left + effect * rng.standard_normal((draws, 1))) * counts, counts
            )
            hits += abs(found.value) <= found.half()
        assert least < hits / 800 <= most


def test_two_shared_seeds_of_eight_do_not_stand_for_all():
    rng = np.random.default_rng(0)
    counts = np.full(40, 100)
    one = Draws(
        100 * (1 + 0.01 * rng.normal(size=(8, 1)) + 0.01 * rng.normal(size=(8, 40))),
        tuple(range(8)),
    )
    two = Draws(
        100 * (1 + 0.01 * rng.normal(size=(2, 1)) + 0.01 * rng.normal(size=(2, 40))), (0, 1)
    )
    found = difference(one, two, counts)
    assert found.value == pytest.approx((one.sums.mean() - two.sums.mean()) / 100)
    most = Draws(one.sums[:6], one.seeds[:6])  # two of eight did not finish
    paired = estimate(one.sums[:6] - 0.5 * most.sums, counts)
    assert difference(one, replace(most, sums=0.5 * most.sums), counts) == paired
