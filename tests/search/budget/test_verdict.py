"""Better, a tie or worse: by the windows that both were measured on."""

import numpy as np
import pytest

from helpers.budgets import row
from qsweep.results.windows import Windows
from qsweep.search.budget.limits import Limit
from qsweep.search.budget.settings import Budget
from qsweep.search.budget.verdict import judge

LIMIT = Limit(Budget("size_gb", 1e-6), 1000)


def _windows(means: dict[str, float], noise: float = 0.001, count: int = 20):
    generator = np.random.default_rng(0)
    tokens = np.full(count, 10.0)
    hard = generator.uniform(0.5, 2, count)
    found = {
        key: Windows(
            hard[None], tokens, (tokens * (mean * hard + generator.normal(0, noise, count)))[None]
        )
        for key, mean in means.items()
    }
    return lambda one: found.get(one.key)


@pytest.mark.parametrize(
    ("kld", "word"), [(0.08, "better"), (0.1, "tie"), (0.0999, "tie"), (0.12, "worse")]
)
def test_words(kld, word):
    rows = [row("mix", 900, kld)], [row("uniform", 950, 0.1)]
    found = judge(LIMIT, *rows, _windows({"mix": kld, "uniform": 0.1}))
    assert found.word == word
    assert found.recommended.key == ("mix" if word == "better" else "uniform")
    assert found.share == pytest.approx(kld / 0.1)


def test_what_is_too_large_is_no_rival():
    rows = [row("mix", 900, 0.1), row("large", 1001, 0.01)], [row("uniform", 2000, 0.01)]
    found = judge(LIMIT, *rows, _windows({"mix": 0.1, "large": 0.01, "uniform": 0.01}))
    assert [one.key for one in found.mixes] == ["mix"]
    assert found.word == "alone"
    assert found.recommended.key == "mix"


def test_nothing_within():
    found = judge(LIMIT, [row("mix", 2000, 0.1)], [], _windows({}))
    assert (found.word, found.recommended) == ("nothing", None)
    found = judge(LIMIT, [], [row("uniform", 10, 0.1)], _windows({}))
    assert (found.word, found.recommended.key) == ("none", "uniform")


def test_the_best_of_several_has_to_be_better_by_more():
    # Just beyond noise for one, and not for the luckiest of twenty.
    means = {"mix": 0.0975, "uniform": 0.1}
    others = {f"mix {n}": 0.0975 + 1e-5 * (n + 1) for n in range(19)}
    windows = _windows(means | others, noise=0.005)
    one = judge(LIMIT, [row("mix", 900, 0.0975)], [row("uniform", 900, 0.1)], windows)
    rows = [row(key, 900, kld) for key, kld in ({"mix": 0.0975} | others).items()]
    many = judge(LIMIT, rows, [row("uniform", 900, 0.1)], windows)
    width = [high - low for _, low, high in (one.difference, many.difference)]
    assert width[1] > 1.3 * width[0]


def test_few_windows_say_nothing():
    windows = _windows({"mix": 0.01, "uniform": 0.1}, count=4)
    found = judge(LIMIT, [row("mix", 900, 0.01)], [row("uniform", 900, 0.1)], windows)
    assert found.word == "untested"
    assert found.difference[1] is None
    gone = judge(LIMIT, [row("mix", 900, 0.01)], [row("uniform", 900, 0.1)], lambda _: None)
    assert gone.word == "untested"


def test_what_has_no_divergence_takes_no_part():
    found = judge(LIMIT, [row("mix", 900, None)], [row("uniform", 900, 0.1)], _windows({}))
    assert found.word == "none"


def test_a_uniform_one_that_was_not_measured_is_no_reason_to_recommend():
    found = judge(LIMIT, [row("mix", 900, 0.1)], [], _windows({}), ["uniform"])
    assert (found.word, found.recommended) == ("unrivalled", None)
    assert found.unmeasured == ("uniform",)
    rows = [row("mix", 900, 0.05)], [row("uniform", 900, 0.1)]
    found = judge(LIMIT, *rows, _windows({"mix": 0.05, "uniform": 0.1}), ["uniform", "other"])
    assert (found.word, found.unmeasured) == ("better", ("other",))
