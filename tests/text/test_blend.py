"""Blends of texts: shares, what they round to, and the order of samples."""

import re
from collections import Counter
from fractions import Fraction
from itertools import permutations

import pytest

from qsweep.base.errors import ConfigError
from qsweep.text.blend import Blend, interleaved, sample_counts
from qsweep.text.corpus import CorpusConfig

SHARES = [("a", 0.6), ("b", 0.3), ("c", 0.1)]


def blend(**weights):
    texts = tuple(CorpusConfig(name, "python") for name in weights)
    return Blend(texts, tuple(weights.values()))


@pytest.mark.parametrize("weights", [(1,), (5, 3, 2), (1, 1, 1), (98, 1, 1), (0.1, 0.2, 0.7)])
def test_counts_add_up_and_are_less_than_one_sample_from_their_shares(weights):
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    for total in range(1, 40):
        counts = sample_counts(shares, total)
        assert sum(counts) == total
        assert all(abs(n - share * total) < 1 for n, share in zip(counts, shares, strict=True))


def test_a_share_that_is_a_whole_number_of_samples_is_exactly_that():
    # 0.1 * 30 is 3.0000000000000004 - or 2.9999999999999996 - in floating point
    assert sample_counts(blend(a=0.7, b=0.2, c=0.1).shares, 30) == [21, 6, 3]


def test_weights_are_relative_and_their_order_is_nothing():
    assert blend(a=1, b=1).shares == blend(a=0.5, b=0.5).shares == (Fraction(1, 2),) * 2
    found = {blend(**dict(order)) for order in permutations([("a", 0.5), ("b", 0.3), ("c", 0.2)])}
    assert len(found) == 1 and found.pop().name == "a 50 % + b 30 % + c 20 %"


def test_one_text_is_called_as_it_is():
    assert blend(c4=0.3).name == "c4" and blend(c4=0.3).shares == (1,)


@pytest.mark.parametrize("weight", [0, -0.5, float("nan"), float("inf")])
def test_a_share_is_a_number_above_zero(weight):
    with pytest.raises(ConfigError, match=r"b:.*a share is a number above 0"):
        blend(a=1, b=weight)


def test_a_name_stands_for_one_text():
    same = (CorpusConfig("a", "python"), CorpusConfig("a", "python", kind="code"))
    with pytest.raises(ConfigError, match="a is named twice"):
        Blend(same, (1, 1))


def test_a_share_of_no_sample_is_refused_with_the_number_that_does():
    some = blend(a=0.97, b=0.03)
    with pytest.raises(ConfigError, match=r"b has a share of 3 %") as told:
        some.check_counts(8, 1000)
    assert "calibration.num_samples=34 would do" in str(told.value)
    some.check_counts(34, 1000)
    # where so many may not be had, only the share is left to change
    with pytest.raises(ConfigError) as told:
        some.check_counts(8, 20)
    assert "would do" not in str(told.value) and "give it a larger share" in str(told.value)


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (1, 1), (0.9, 0.07, 0.03)])
def test_the_number_that_is_advised_does_for_every_share(weights):
    some = blend(**dict(zip("abc", weights, strict=False)))
    with pytest.raises(ConfigError) as told:
        some.check_counts(1, 10**6)
    enough = int(re.findall(r"num_samples=(\d+) would do", str(told.value))[0])
    some.check_counts(enough, 10**6)
    assert all(sample_counts(some.shares, enough))


def test_samples_are_spread_by_their_shares_and_keep_their_order():
    parts = [
        [f"a{n}" for n in range(60)],
        [f"b{n}" for n in range(30)],
        [f"c{n}" for n in range(10)],
    ]
    mixed = interleaved(parts, seed=0)
    assert sorted(mixed) == sorted(sum(parts, []))
    for part in parts:
        assert [one for one in mixed if one[0] == part[0][0]] == part
    for end in (10, 20, 50):
        first = Counter(one[0] for one in mixed[:end])
        assert all(abs(first[name] - share * end) <= 2 for name, share in SHARES)
    assert interleaved(parts, seed=0) == mixed != interleaved(parts, seed=1)
