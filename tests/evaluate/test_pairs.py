"""What may be said of several models on the same windows."""

import numpy as np
import pytest

from qsweep.evaluate.draws import Draws
from qsweep.evaluate.intervals import student_t
from qsweep.evaluate.metrics import clustered_mean
from qsweep.evaluate.pairs import RankRange, compare_pairs, holm, rank_ranges

COUNTS = np.full(32, 511)


def better_than(sums, *more, each_alone=False):
    return compare_pairs([Draws(one[None]) for one in sums], *more).better(each_alone=each_alone)


def measured(means, noise=0.02, windows=32, seed=0, common=0.5):
    """Sums over windows of models with these means: what is hard is so for all of them."""
    rng = np.random.default_rng(seed)
    hard = common * rng.standard_normal(windows)
    own = noise * rng.standard_normal((len(means), windows))
    return (np.asarray(means)[:, None] + hard + own) * 511


def test_holm_by_hand():
    # 4 * .01, then 3 * .02, 2 * .03 and .04, none below the one before it
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_two_models_are_told_apart_exactly_where_their_interval_leaves_out_none():
    for gap in (0.003, 0.005, 0.007, 0.009, 0.011):
        sums = measured([1.0, 1.0 + gap])
        found = clustered_mean(sums[0] - sums[1], COUNTS)
        beyond = abs(found.value) > student_t(31) * found.stderr
        assert better_than(sums, COUNTS).any() == beyond


def test_windows_of_unequal_length_weigh_by_their_tokens():
    counts = np.array([511] * 20 + [3] * 12)
    sums = measured([1.0, 1.02]) / 511 * counts
    sums[0, 20:] += 3 * 3  # a worse model, but on hardly any token
    found = clustered_mean(sums[0] - sums[1], counts)
    assert found.value < 0
    assert better_than(sums, counts)[0, 1] == (found.value + student_t(31) * found.stderr < 0)


def test_what_is_common_to_all_windows_hides_nothing():
    better = better_than(measured([1.0, 1.1, 1.2], common=50.0), COUNTS)
    assert better.tolist() == [[False, True, True], [False, False, True], [False, False, False]]


def test_a_copy_ties_and_so_does_what_may_not_be_told():
    sums = measured([1.0, 1.1, 1.2])
    sums = np.concatenate([sums, sums[:1]])
    untold = np.zeros((4, 4), bool)
    untold[0, 1] = untold[1, 0] = True
    better = better_than(sums, COUNTS, untold)
    assert not better[0, 3] and not better[3, 0]
    assert not better[0, 1] and not better[1, 0]
    assert better[0, 2] and better[3, 1]


def test_ranks_are_what_the_claims_leave_open():
    better = better_than(measured([1.0, 1.001, 1.1, 1.3]), COUNTS)
    assert rank_ranges(better) == [
        RankRange(1, 2), RankRange(1, 2), RankRange(3, 3), RankRange(4, 4)
    ]  # fmt: skip


def test_a_false_claim_is_made_in_one_family_of_twenty_at_most():
    """Ten models that are equally good, windows with heavy tails: 45 pairs, 1000 sweeps."""
    rng = np.random.default_rng(1)
    counts = np.full(24, 100)
    wrong = sum(better_than(100 * rng.standard_t(4, (10, 24)), counts).any() for _ in range(1000))
    assert wrong / 1000 < 0.05


def test_a_pair_alone_is_told_apart_whatever_others_there_are():
    sums = measured([1.0, 1.011, *([1.005] * 30)], noise=0.02)
    assert not better_than(sums, COUNTS)[0, 1]
    alone = better_than(sums, COUNTS, each_alone=True)
    assert alone[0, 1] == better_than(sums[:2], COUNTS)[0, 1]
