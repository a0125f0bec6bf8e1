"""Survival until two models part, lengths beside each other, and what else is told of long answers."""

import math

import pytest

from qsweep.base.errors import ArtifactCorrupt
from qsweep.tasks.long.compare import compare_long
from qsweep.tasks.long.survival import departure, survival
from qsweep.tasks.long_answers import LongAnswers
from qsweep.tasks.significance import REPLICATES, resampled_means


@pytest.mark.parametrize(
    ("own", "reference", "found"),
    [
        ([1, 2, 3], [1, 2, 3], (3, False)),
        ([1, 9, 3], [1, 2, 3], (2, True)),
        ([9], [1, 2, 3], (1, True)),
        ([1, 2], [1, 2, 3], (3, True)),  # it ended where the other goes on
        ([1, 2, 3, 4], [1, 2, 3], (4, True)),
        ([1, 9], [1, 2, 3], (2, True)),
    ],
)
def test_answers_part_at_the_first_token_that_differs(own, reference, found):
    assert departure(own, reference) == found


# The first arm (6-MP) of Freireich et al. (Blood 21, 1963), the classic example of the product limit:
# weeks of remission, + censored, and the estimate of every textbook since.
TIMES = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
CENSORED = {3, 5, 7, 8, 11, 12, 13, 16, 17, 18, 19, 20}
EVENTS = [n not in CENSORED for n in range(len(TIMES))]
BOOK = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}


def test_the_product_limit_is_that_of_the_books():
    found = survival(TIMES, EVENTS)
    assert dict(zip(found.tokens, found.shares, strict=True)) == pytest.approx(BOOK, abs=5e-4)
    assert found.median == 23


def test_the_medians_interval_is_where_the_bounds_cross_one_half():
    # Greenwood's sum, and log(-log S) +- 1.96 of its error: at 13 weeks the lower bound is below.
    share, greenwood, lows, highs = 1.0, 0.0, {}, {}
    for time in BOOK:
        at_risk = sum(other >= time for other in TIMES)
        events = sum(e for other, e in zip(TIMES, EVENTS, strict=True) if other == time)
        share *= 1 - events / at_risk
        greenwood += events / (at_risk * (at_risk - events))
        width = 1.959964 * math.sqrt(greenwood) / abs(math.log(share))
        lows[time], highs[time] = share ** math.exp(width), share ** math.exp(-width)
    found = survival(TIMES, EVENTS)
    assert found.low == next(t for t, low in lows.items() if low <= 0.5)
    assert found.high is None and min(highs.values()) > 0.5


def test_without_a_departure_all_survive():
    found = survival([30, 40], [False, False])
    assert (found.tokens, found.shares, found.median) == ((), (), None)


def test_where_all_part_at_once_the_median_is_there():
    found = survival([1] * 9, [True] * 9)
    assert (found.median, found.low, found.high) == (1, 1, None)
    assert found.tokens == (1,) and found.shares == (0.0,)


def test_a_bound_that_is_not_defined_is_no_end_of_the_medians_interval():
    # Two departures: at the second the curve is 0, and its upper bound is not defined.
    found = survival([5, 10], [True, True])
    assert (found.median, found.low, found.high) == (5, 5, None)


def test_without_censoring_the_curve_is_the_share_that_is_left():
    found = survival([3, 1, 4, 2], [True] * 4)
    assert found.tokens == (1, 2, 3, 4)
    assert found.shares == pytest.approx((0.75, 0.5, 0.25, 0.0))
    assert found.median == 2


def said(greedy, lengths, truncated=None, loops=None):
    none = [[False] * len(of) for of in lengths]
    return LongAnswers(greedy, lengths, truncated or none, loops or none)


BASE = said([[1, 2, 3], [4, 5], [6]], [[10, 30], [20, 20], [5, 7]])


def test_a_reference_beside_itself_has_lost_nothing():
    found = compare_long([[(BASE, BASE)]])
    assert found.length_ratio == found.length_ratio_low == found.length_ratio_high == 1.0
    assert found.departed == 0 and found.divergence_token is None and found.shares == ()
    assert (found.problems, found.samples, found.longest) == (3, 6, 3)


def test_lengths_are_those_of_all_samples_beside_the_references():
    own = said([[1, 2, 9], [4, 5], [7]], [[20, 60], [40, 40], [10, 14]])
    found = compare_long([[(own, BASE)]])
    # Every problem's answers are twice as long: no draw of problems gives anything else.
    assert found.length_ratio == found.length_ratio_low == found.length_ratio_high == 2.0
    assert found.length == pytest.approx(184 / 6) and found.reference_length == pytest.approx(
        92 / 6
    )
    assert found.departed == pytest.approx(2 / 3)


def test_an_interval_covers_the_problems_that_are_drawn():
    base = said([[1]] * 40, [[100, 100]] * 40)
    own = said([[1]] * 40, [[100 + 50 * (n % 2), 100] for n in range(40)])
    found = compare_long([[(own, base)]])
    assert found.length_ratio == pytest.approx(1.125)
    # Half of the problems have a mean of 125: the mean's error is 12.5 / sqrt(40).
    half = 1.96 * 0.125 / math.sqrt(40)
    assert found.length_ratio_low == pytest.approx(1.125 - half, abs=0.01)
    assert found.length_ratio_high == pytest.approx(1.125 + half, abs=0.01)


def test_more_samples_of_a_problem_are_no_more_problems():
    lengths = [[100 + 50 * (n % 2)] for n in range(20)]
    one = compare_long([[(said([[1]] * 20, lengths), said([[1]] * 20, [[100]] * 20))]])
    often = [of * 50 for of in lengths]
    many = compare_long([[(said([[1]] * 20, often), said([[1]] * 20, [[100] * 50] * 20))]])
    assert (many.length_ratio_low, many.length_ratio_high) == pytest.approx(
        (one.length_ratio_low, one.length_ratio_high)
    )


def test_shares_are_of_all_samples():
    own = said(
        BASE.greedy, BASE.lengths,
        [[True, False], [True, True], [False, False]], [[False, True], [False, False], [False, False]],
    )  # fmt: skip
    found = compare_long([[(own, BASE)]])
    assert found.truncated == 0.5 and found.loops == pytest.approx(1 / 6)
    assert found.reference_truncated == found.reference_loops == 0


def test_of_several_tasks_each_has_the_same_weight_in_the_ratio():
    short, long = said([[1]], [[10]]), said([[1]], [[1000]])
    twice, same = said([[1]], [[20]]), said([[1]], [[1000]])
    found = compare_long([[(twice, short)], [(same, long)]])
    assert found.length_ratio == pytest.approx(math.sqrt(2))
    assert found.problems == 2


def test_a_curve_of_many_departures_keeps_its_end():
    base = said([[1] * 900] * 500, [[1]] * 500)
    own = said([[1] * n + [2] * (900 - n) for n in range(500)], [[1]] * 500)
    found = compare_long([[(own, base)]])
    assert len(found.tokens) <= 200 and found.tokens[-1] == 500 and found.shares[-1] == 0
    assert found.divergence_token == 250


def test_answers_to_other_problems_are_not_compared():
    with pytest.raises(ArtifactCorrupt, match="other problems"):
        compare_long([[(said([[1]], [[1]]), BASE)]])


def test_resampled_means_are_means_of_drawn_rows():
    import numpy

    rows = numpy.asarray([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
    found = resampled_means(rows)
    assert found.shape == (REPLICATES, 2)
    assert numpy.allclose(found[:, 1], 10 * found[:, 0])  # rows stay together
    assert abs(found[:, 0].mean() - 3.0) < 0.1
    assert not numpy.allclose(found, resampled_means(rows, seed=1))
