"""No worse than by a margin: what is accepted, what is rejected, and what would decide."""

import math

import numpy as np
import pytest

from qsweep.evaluate.equivalence import (
    OfAnswers,
    OfScores,
    OfWindows,
    Same,
    judge,
    overall,
)
from qsweep.evaluate.intervals import half_width, student_t

LEAST = 8


def of_windows(losses, **more):
    return OfWindows(float(losses.mean()), float(losses.std(ddof=1)), len(losses), **more)


def test_a_copy_is_accepted_at_any_margin():
    for margin in (0.0, 1e-9, 0.02):
        found = judge(OfWindows(0.0, 0.0, 8), margin, LEAST)
        assert (found.outcome, found.low, found.high) == ("accept", 0.0, 0.0)
        assert judge(Same(4), margin).outcome == "accept"


def test_bounds_are_one_sided_at_five_per_cent():
    found = judge(OfWindows(0.01, 0.02, 25), 0.5, LEAST)
    half = student_t(24, 0.9) * 0.02 / 5
    assert (found.low, found.high) == pytest.approx((0.01 - half, 0.01 + half))
    assert judge(OfWindows(0.01, 0.02, 25), 0.01 + half + 1e-9).outcome == "accept"
    assert judge(OfWindows(0.01, 0.02, 25), 0.01 - half - 1e-9).outcome == "reject"
    stopped = OfWindows(0.01, 0.02, 25, sequential=True)
    half = half_width(0.02 / 5, 25, sequential=True, confidence=0.9)
    assert stopped.bounds() == pytest.approx((0.01 - half, 0.01 + half))


def test_few_windows_decide_nothing_however_clear_they_are():
    for value, towards in ((0.0, "accept"), (0.5, "reject")):
        found = judge(OfWindows(value, 1e-6, 7), 0.01, LEAST)
        assert (found.outcome, found.needed, found.towards) == ("inconclusive", 8, towards)
    alone = judge(OfWindows(0.0, None, 1), 0.01, LEAST)
    assert (alone.outcome, alone.needed, alone.high) == ("inconclusive", None, math.inf)


def test_at_the_margin_no_number_decides_and_beyond_it_none_accepts():
    at = judge(OfWindows(0.01, 0.02, 12), 0.01, LEAST)
    assert (at.outcome, at.needed, at.towards, at.more) == ("inconclusive", None, None, None)
    beyond = judge(OfWindows(0.012, 0.02, 12), 0.01, LEAST)
    assert beyond.outcome == "inconclusive" and beyond.towards == "reject" and beyond.more > 100


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(("loss", "outcome"), [(0.004, "accept"), (0.017, "reject")])
def test_so_many_windows_decide_four_times_out_of_five(loss, outcome, sequential):
    found = judge(OfWindows(loss, 0.02, 10, sequential=sequential), 0.01, LEAST)
    assert found.towards == outcome and found.needed > 30
    rng = np.random.default_rng(0)
    texts = rng.normal(loss, 0.02, (1500, found.needed))

    def share(texts):
        evidence = (of_windows(one, sequential=sequential) for one in texts)
        return sum(judge(one, 0.01, LEAST).outcome == outcome for one in evidence) / len(texts)

    assert 0.77 < share(texts) < 0.84
    assert share(texts[:, : found.needed // 2]) < 0.6


def tango_by_search(lost, gained, count):
    """Tango's corrected upper bound, its likelihood maximised by brute force."""
    from scipy.optimize import brentq, minimize_scalar

    def score(d):
        least = max(0.0, -d)

        def against(q):  # q gained, q + d lost
            parts = ((lost, q + d), (gained, q), (count - lost - gained, 1 - 2 * q - d))
            return -sum(n * math.log(max(p, 1e-300)) for n, p in parts if n)

        ends = (least + 1e-12, (1 - d) / 2 - 1e-12)
        q = minimize_scalar(against, bounds=ends, method="bounded", options={"xatol": 1e-13}).x
        return (lost - gained - count * d + 0.5) / math.sqrt(count * (2 * q + d - d * d))

    return brentq(lambda d: score(d) + 1.6448536, (lost - gained) / count + 1e-9, 1 - 1e-6)


@pytest.mark.parametrize(
    ("lost", "gained", "count"), [(3, 1, 20), (0, 2, 30), (12, 9, 100), (1, 0, 44), (5, 5, 200)]
)
def test_the_bound_for_answers_is_tangos(lost, gained, count):
    _, high = OfAnswers(lost, gained, count).bounds()
    assert high == pytest.approx(tango_by_search(lost, gained, count), abs=2e-5)
    low, _ = OfAnswers(gained, lost, count).bounds()
    assert low == pytest.approx(-high)


def test_no_changed_answer_still_leaves_room_for_some():
    _, high = OfAnswers(0, 0, 20).bounds()
    # of 20 samples none is lost with a chance of 5 % where 14 % of all are
    assert 0.14 < high < 0.2
    assert judge(OfAnswers(0, 0, 20), 0.01).outcome == "inconclusive"
    needed = judge(OfAnswers(0, 0, 20), 0.01)
    assert needed.towards == "accept" and 300 < needed.needed < 500
    assert judge(OfAnswers(0, 0, needed.needed), 0.01).outcome == "accept"


@pytest.mark.parametrize(("lost", "gained", "count"), [(6, 4, 100), (2, 1, 60)])
def test_so_many_answers_decide_four_times_out_of_five(lost, gained, count):
    found = judge(OfAnswers(lost, gained, count), 0.05)
    assert found.outcome == "inconclusive" and found.towards == "accept"
    rng = np.random.default_rng(1)
    shares = np.array([lost, gained, count - lost - gained]) / count
    drawn = rng.multinomial(found.needed, shares, size=800)
    decided = sum(
        judge(OfAnswers(a, b, found.needed), 0.05).outcome == "accept" for a, b, _ in drawn
    )
    assert 0.75 < decided / 800 < 0.9


def test_bounds_for_answers_cover_near_0_and_with_few_samples():
    """Exact, over all outcomes: the least coverage that a loss of some points finds."""
    from scipy.stats import multinomial

    for count, loss, gain in ((20, 0.02, 0.0), (20, 0.1, 0.05), (60, 0.02, 0.001), (60, 0.05, 0.1)):
        shares = [loss + gain, gain, 1 - loss - 2 * gain]
        pairs = [(a, b) for a in range(count + 1) for b in range(count + 1 - a)]
        chances = multinomial.pmf([[a, b, count - a - b] for a, b in pairs], count, shares)
        likely = [(p, c) for p, c in zip(pairs, chances, strict=True) if c > 1e-7]
        bounds = [(c, OfAnswers(*p, count).bounds()) for p, c in likely]
        assert sum(c for c, (_, high) in bounds if high >= loss) >= 0.95
        assert sum(c for c, (low, _) in bounds if low <= loss) >= 0.938


def test_graded_scores_of_which_none_changed_are_not_certain():
    assert OfScores(0.0, 0.0, 20).bounds()[1] > 0.1
    values = np.random.default_rng(0).normal(0.01, 0.05, 2000)
    found = OfScores(float(values.mean()), float((values**2).mean()), 2000)
    plain = of_windows(values).bounds()
    assert found.bounds() == pytest.approx(plain, abs=2e-3) and found.bounds()[1] > plain[1]


def test_all_have_to_be_accepted_and_one_rejects():
    assert overall(["accept", "accept"]) == "accept"
    assert overall(["accept", "inconclusive"]) == "inconclusive"
    assert overall(["inconclusive", "reject", "accept"]) == "reject"


def test_two_measures_at_their_margins_are_accepted_together_in_one_of_twenty():
    """A trial that is worse by its margin in one measure, and equal in the other (Berger 1982)."""
    rng = np.random.default_rng(5)
    runs, accepted = 2000, 0
    for _ in range(runs):
        worse, equal = rng.normal(0.01, 0.02, 40), rng.normal(0.0, 0.001, 40)
        outcomes = [judge(of_windows(one), 0.01, LEAST).outcome for one in (worse, equal)]
        accepted += overall(outcomes) == "accept"
    assert accepted / runs < 0.06
