"""Every number of the protocol against an independent computation of it."""

import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from qsweep.evaluate.intervals import student_t
from qsweep.evaluate.metrics import (
    by_entropy,
    by_quarter,
    clustered_mean,
    end_positions,
    expected_acceptance,
    kl_divergence,
    nll,
    perplexity,
    ppl_ratio,
    quality,
    quality_per_gb,
    quantiles,
    rms,
    top1_agrees,
    window_sums,
)

# Two-sided 95 % points of Student's t, as printed in statistical tables.
T_TABLE = {
    1: 12.7062,
    2: 4.3027,
    3: 3.1824,
    5: 2.5706,
    10: 2.2281,
    30: 2.0423,
    60: 2.0003,
    120: 1.9799,
}


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return 4 * torch.randn(50, 300), 4 * torch.randn(50, 300)


# per token


def test_nll_is_cross_entropy(logits):
    targets = torch.randint(300, (50,))
    expected = functional.cross_entropy(logits[0], targets, reduction="none")
    torch.testing.assert_close(nll(logits[0], targets), expected)


def test_half_precision_logits_are_widened_before_anything_is_summed(logits):
    p, q = (part.bfloat16() for part in logits)
    targets = torch.randint(300, (50,))
    assert nll(p, targets).dtype == torch.float32
    torch.testing.assert_close(nll(p, targets), nll(p.float(), targets))
    torch.testing.assert_close(kl_divergence(p, q), kl_divergence(p.float(), q.float()))


def test_kl_divergence_is_torchs(logits):
    p, q = logits
    expected = functional.kl_div(
        q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    torch.testing.assert_close(kl_divergence(p, q), expected, rtol=1e-5, atol=1e-6)
    # not symmetric: it is the reference that is averaged over
    assert not torch.allclose(kl_divergence(q, p), expected)


def test_kl_divergence_of_equal_logits_is_exactly_zero(logits):
    assert kl_divergence(logits[0], logits[0].clone()).eq(0).all()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=4),
    st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=4),
)
def test_kl_divergence_is_never_negative_beyond_rounding(p, q):
    value = float(kl_divergence(torch.tensor([p]), torch.tensor([q])))
    exact_p, exact_q = (torch.tensor(z, dtype=torch.float64).log_softmax(0) for z in (p, q))
    exact = float((exact_p.exp() * (exact_p - exact_q)).sum())
    assert value == pytest.approx(exact, rel=1e-4, abs=1e-5)
    assert value > -1e-5


def test_acceptance_is_what_is_common_to_both_distributions():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]).log()
    q = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.3, 0.2], [0.0, 0.4, 0.6]]).log()
    torch.testing.assert_close(expected_acceptance(p, q), torch.tensor([1.0, 0.7, 0.0]))
    torch.testing.assert_close(expected_acceptance(q, p), expected_acceptance(p, q))


def test_acceptance_is_how_often_a_drawn_token_is_kept():
    torch.manual_seed(0)
    p, q = torch.randn(1, 12), torch.randn(1, 12)
    p_, q_ = p.softmax(1)[0], q.softmax(1)[0]
    drafted = q_.multinomial(200_000, replacement=True)
    kept = torch.rand(len(drafted)) < (p_ / q_)[drafted]
    assert float(expected_acceptance(p, q)) == pytest.approx(float(kept.double().mean()), abs=0.005)


def test_padded_vocabularies_are_compared_over_the_shared_part(logits):
    p, q = logits
    padded = torch.cat([q, torch.full((50, 20), 9.0)], 1)
    torch.testing.assert_close(kl_divergence(p, padded), kl_divergence(p, q))
    torch.testing.assert_close(kl_divergence(padded, p), kl_divergence(q, p))
    torch.testing.assert_close(expected_acceptance(p, padded), expected_acceptance(p, q))
    assert torch.equal(top1_agrees(p, padded), top1_agrees(p, q))
    assert torch.equal(top1_agrees(padded, p), top1_agrees(q, p))


def test_top1_agreement_takes_ties_as_agreement():
    reference = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    measured = torch.tensor([[5.0, 5.0, 1.0], [5.0, 4.0, 1.0], [1.0, 0.0, 0.0]])
    assert top1_agrees(reference, measured).tolist() == [True, False, True]


# over windows


def test_window_sums_cut_a_stream_of_tokens():
    values = torch.arange(1.0, 8.0)
    sums = window_sums(values, torch.tensor([3, 0, 2, 2]))
    assert sums.tolist() == [6.0, 0.0, 9.0, 13.0]
    assert sums.dtype == torch.float64


def test_sums_of_many_tokens_keep_their_digits():
    values = torch.full((1_000_000,), 3.3)
    sums = window_sums(values, torch.tensor([1_000_000]))
    assert float(sums) == pytest.approx(1e6 * float(values[0]), rel=1e-12)


def test_mean_of_equal_windows_has_the_textbook_error_over_windows():
    means = torch.tensor([2.0, 3.0, 2.5, 4.0], dtype=torch.float64)
    found = clustered_mean(means * 10, torch.full((4,), 10))
    assert found.value == pytest.approx(2.875)
    assert found.stderr == pytest.approx(numpy.std([2, 3, 2.5, 4], ddof=1) / 2)


def test_error_of_unequal_windows_is_what_resampling_windows_gives():
    draw = numpy.random.default_rng(0)
    counts = draw.integers(50, 500, size=400)
    sums = counts * (3 + draw.normal(0, 0.5, size=400))
    found = clustered_mean(torch.tensor(sums), torch.tensor(counts))
    assert found.value == pytest.approx(sums.sum() / counts.sum())
    chosen = draw.integers(400, size=(4000, 400))
    resampled = sums[chosen].sum(1) / counts[chosen].sum(1)
    assert found.stderr == pytest.approx(resampled.std(), rel=0.08)


def test_tokens_of_a_window_are_not_taken_as_independent():
    # every token of a window has the same value, so there is no more to know than a value a window
    means = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    few = clustered_mean(means * 1, torch.full((5,), 1))
    many = clustered_mean(means * 1000, torch.full((5,), 1000))
    assert few.stderr == pytest.approx(many.stderr)


def test_perplexity_weighs_by_tokens_and_its_error_is_the_logs_times_it():
    sums, counts = torch.tensor([10.0, 60.0, 20.0]), torch.tensor([5, 20, 10])
    found = perplexity(sums, counts)
    assert found.value == pytest.approx(math.exp(90 / 35))
    log = clustered_mean(sums, counts)
    assert found.stderr == pytest.approx(found.value * log.stderr)


def test_a_single_window_tells_no_error():
    sums, counts = torch.tensor([10.0]), torch.tensor([5])
    assert perplexity(sums, counts).stderr is None
    ratio = ppl_ratio(sums, sums - 1, counts)
    assert (ratio.low, ratio.high) == (0.0, math.inf)
    assert ratio.value == pytest.approx(math.exp(0.2))


def test_a_perplexity_beyond_floats_is_infinite_and_no_error():
    sums, counts = torch.tensor([5000.0, 5000.0]), torch.tensor([5, 5])
    assert perplexity(sums, counts).value == math.inf
    assert ppl_ratio(sums, torch.zeros(2), counts).value == math.inf


def test_paired_interval_is_scipys_t_interval_of_the_differences():
    from scipy import stats

    draw = numpy.random.default_rng(1)
    reference = draw.normal(3.0, 0.6, size=12)  # windows differ a lot
    measured = reference + draw.normal(0.05, 0.01, size=12)  # and together
    counts = torch.full((12,), 100)
    found = ppl_ratio(torch.tensor(measured) * 100, torch.tensor(reference) * 100, counts)
    difference = measured - reference
    low, high = stats.t.interval(0.95, 11, difference.mean(), stats.sem(difference))
    assert found.value == pytest.approx(math.exp(difference.mean()))
    assert found.low == pytest.approx(math.exp(low), rel=1e-6)
    assert found.high == pytest.approx(math.exp(high), rel=1e-6)
    # pairing is what makes it narrow: unpaired, the same data say nothing
    unpaired = math.hypot(stats.sem(measured), stats.sem(reference))
    assert (high - low) / 2 < unpaired / 5


def test_the_ratio_is_that_of_the_perplexities_also_for_unequal_windows():
    sums, reference = torch.tensor([10.0, 60.0, 20.0]), torch.tensor([9.0, 55.0, 19.5])
    counts = torch.tensor([5, 20, 10])
    found = ppl_ratio(sums, reference, counts)
    expected = perplexity(sums, counts).value / perplexity(reference, counts).value
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high


def test_a_model_against_itself_has_a_ratio_of_one_without_width():
    sums, counts = torch.tensor([10.0, 60.0]), torch.tensor([5, 20])
    found = ppl_ratio(sums, sums, counts)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("freedom", "value"), T_TABLE.items())
def test_students_t_is_the_tables(freedom, value):
    assert student_t(freedom) == pytest.approx(value, abs=1e-4)


def test_students_t_becomes_the_normal_distributions():
    assert student_t(100_000) == pytest.approx(1.95996, abs=1e-4)
    assert student_t(10**9) == pytest.approx(1.959964, abs=1e-6)
    assert student_t(10, 0.99) == pytest.approx(3.1693, abs=1e-4)
    with pytest.raises(ValueError, match="degree of freedom"):
        student_t(0)


# As stored measurements have them: computed by Simpson's rule and bisection, before scipy did it.
@pytest.mark.parametrize(
    ("freedom", "value"),
    [
        (1, 12.706204736244276),
        (2, 4.302652729749229),
        (3, 3.1824463052782153),
        (9, 2.2621571627979575),
        (93, 1.9858018143504614),
        (140, 1.977053719654412),
        (1000, 1.9623390808138594),
    ],
)
def test_students_t_is_what_earlier_measurements_were_made_with(freedom, value):
    assert student_t(freedom) == pytest.approx(value, rel=1e-11)


def test_a_paired_interval_is_that_of_earlier_measurements():
    sums, reference = torch.tensor([100.0, 120.5, 98.25, 130]), torch.tensor([99, 118, 98, 129.5])
    found = ppl_ratio(sums, reference, torch.full((4,), 40))
    assert found.value == pytest.approx(1.0269184276577525, rel=1e-12)
    assert found.low == pytest.approx(0.9865634276217082, rel=1e-12)
    assert found.high == pytest.approx(1.0689241335504238, rel=1e-12)


def test_quantiles_are_numpys_also_for_more_values_than_torch_takes():
    torch.manual_seed(0)
    values = torch.rand(17_000_000)  # torch.quantile refuses more than 2**24
    found = dict(quantiles(values))
    assert list(found) == ["median", "p90", "p99", "p999", "max"]
    for name, share in {"median": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}.items():
        assert found[name] == pytest.approx(share, abs=1e-3)
    assert found["max"] == float(values.max())


def test_quarters_are_of_positions():
    values = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0])
    positions = torch.tensor([1, 3, 4, 15, 14])
    assert dict(by_quarter(values, positions, 16)) == {"q1": 1.5, "q2": 3.0, "q4": 15.0}


def test_windows_that_are_scored_to_their_end_tell_their_positions():
    assert end_positions(torch.tensor([3, 1, 0]), 5).tolist() == [2, 3, 4, 4]


def test_fifths_are_of_tokens_by_entropy():
    entropy = numpy.arange(100) / 10
    order = numpy.random.default_rng(0).permutation(100)
    found = dict(by_entropy(entropy[order] * 2, entropy[order]))
    expected = {f"e{n + 1}": 2 * entropy[20 * n : 20 * n + 20].mean() for n in range(5)}
    assert found == pytest.approx(expected)


def test_equal_entropies_stay_together():
    found = dict(by_entropy(numpy.arange(10.0), numpy.zeros(10)))
    assert found == {"e1": 4.5}


def test_rms():
    assert rms(torch.tensor([3.0, -4.0])) == pytest.approx(math.sqrt(12.5))


# what it means


@pytest.mark.parametrize(
    ("ratio", "value"),
    [
        (1.0, 1.0),
        (0.9, 1.0),
        (1.2, 0.0),
        (math.sqrt(1.2), 0.5),
        (1.44, -1.0),
        (math.inf, -math.inf),
    ],
)
def test_quality_is_linear_in_the_logarithm_of_the_ratio(ratio, value):
    assert quality(ratio) == pytest.approx(value)


@pytest.mark.parametrize("ratio", [math.nan, 0.0, -1.0])
def test_quality_of_what_is_no_ratio_is_no_number(ratio):
    assert math.isnan(quality(ratio))


def test_quality_per_gb_rewards_small_files_only_where_quality_is_positive():
    assert quality_per_gb(0.8, 2.0) == pytest.approx(0.4)
    assert quality_per_gb(-0.8, 2.0) == -0.8  # dividing would make a bad model look better
    assert quality_per_gb(0.0, 2.0) == 0.0
