"""The statistics, against values worked out by other means."""

import math
import random

import numpy
import pytest

from qsweep.tasks.significance import (
    interval,
    mcnemar,
    measurable,
    paired_p,
    paired_replicates,
    samples_needed,
    sign_flip,
    wilson,
)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (3, 9), (12, 12), (1, 20), (150, 210)])
def test_mcnemar_is_the_exact_binomial_test(better, worse):
    changed = better + worse
    tail = sum(math.comb(changed, k) for k in range(min(better, worse) + 1)) / 2**changed
    assert mcnemar(better, worse) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    assert mcnemar(better, worse) == mcnemar(worse, better)


def test_mcnemar_holds_for_numbers_beyond_a_float():
    # Normal approximation, continuity corrected: z = (|b - c| - 1) / sqrt(b + c).
    z = (200 - 1) / math.sqrt(20_000)
    assert mcnemar(9_900, 10_100) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


# As records of earlier versions have them, which summed the tail in logarithms.
@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [
        (0, 0, 1.0),
        (3, 9, 0.1459960937500003),
        (2, 17, 0.0007286071777343732),
        (40, 61, 0.04604406692934282),
        (150, 210, 0.001834007417096024),
    ],
)
def test_mcnemars_p_is_that_of_earlier_records(better, worse, p):
    assert mcnemar(better, worse) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize(
    ("score", "count", "low", "high"),
    [
        (0.6, 200, 0.5308367198423567, 0.6653942148238507),
        (1 / 3, 12, 0.13812009012485987, 0.6093779130595061),
        (1.0, 12, 0.7575059904469021, 1.0),
    ],
)
def test_wilsons_interval_is_that_of_earlier_records(score, count, low, high):
    found = wilson(score, count)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_the_bootstrap_interval_has_the_width_that_theory_says():
    rng = random.Random(1)
    reference = [float(rng.random() < 0.6) for _ in range(800)]
    scores = [1 - r if rng.random() < 0.1 else r for r in reference]
    own, base = paired_replicates(scores, reference)
    difference = numpy.mean(scores) - numpy.mean(reference)
    found = interval(float(difference), own - base)
    half = 1.96 * numpy.std(numpy.array(scores) - numpy.array(reference)) / math.sqrt(800)
    assert found.low < difference < found.high
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_pairing_makes_the_interval_narrow_where_models_agree():
    reference = [float(i % 2) for i in range(400)]
    scores = [*reference[:-4], *(1 - r for r in reference[-4:])]
    own, base = paired_replicates(scores, reference)
    assert numpy.std(own - base) < 0.3 * numpy.std(own)


def test_the_bootstrap_covers_the_truth_about_nineteen_times_in_twenty():
    rng = numpy.random.default_rng(3)
    covered = 0
    for _ in range(300):
        reference = (rng.random(150) < 0.7).astype(float)
        scores = numpy.where(rng.random(150) < 0.2, (rng.random(150) < 0.5), reference)
        own, base = paired_replicates(scores.tolist(), reference.tolist(), 1000)
        found = interval(0.0, own - base)
        covered += found.low <= 0.2 * (0.5 - 0.7) <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_equal_models_differ_by_nothing():
    assert paired_p([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]) == (1.0, "mcnemar")
    assert sign_flip([0.0, 0.0]) == 1.0


def test_sign_flips_for_graded_scores():
    better = [0.5 + 0.01 * i for i in range(40)]
    worse = [s - 0.2 for s in better]
    p, test = paired_p(worse, better)
    assert test == "sign flips" and p < 0.001
    # Three differences of one sign have 2 of 8 flips as extreme.
    assert sign_flip([0.1, 0.2, 0.3]) == pytest.approx(0.25, abs=0.02)


def test_the_samples_asked_for_give_the_promised_power():
    changed, loss = 0.15, 0.06
    count = samples_needed(changed, loss)
    rng = numpy.random.default_rng(5)
    worse = (changed + loss) / 2
    drawn = rng.multinomial(count, [worse, changed - worse, 1 - changed], size=600)
    power = numpy.mean([mcnemar(int(b), int(w)) < 0.05 for w, b, _ in drawn])
    assert 0.72 < power < 0.86
    assert samples_needed(0.0, 0.02) > 300  # a loss of 2 % changes 2 % at least


def test_a_reference_at_chance_is_not_measurable():
    assert not measurable(0.28, 0.25, 200)
    assert measurable(0.40, 0.25, 200)
    assert not measurable(0.40, 0.25, 20)
    assert not measurable(0.006, 0.0, 164)  # one problem of HumanEval may be luck
    assert measurable(0.06, 0.0, 164)
    assert not measurable(0.0, 0.0, 0)


def test_wilson_against_a_published_value():
    # Newcombe (1998): 81 of 263 gives .2553 to .3662.
    found = wilson(81 / 263, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_a_score_of_zero_is_not_certain():
    scores, reference = [0.0] * 100, [1.0] * 40 + [0.0] * 60
    means, _ = paired_replicates(scores, reference)
    found = interval(0.0, means)
    assert found.low < 0.001
    assert 0.015 < found.high < 0.04  # Wilson's bound is 3.7 %, the rule of three says 3 %
    same, _ = paired_replicates(reference, reference)
    assert abs(float(same.mean()) - 0.4) < 0.01
    both, base = paired_replicates([1.0] * 50, [1.0] * 50)
    assert (both == base).all()
