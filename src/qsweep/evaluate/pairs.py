"""Which of several models, measured on the same windows, are better than which. Pure.

Every pair is compared by its own differences, window by window: how hard a window is falls out, so
that pairs are told apart which their intervals against the reference do not tell apart. Over all
pairs Holm's procedure keeps the chance of a single false claim below 5 %, so that all ranks that
follow from the claims hold together (Klein, Wright and Wieczorek 2020, J. R. Statist. Soc. A 183,
589-606, make ranks from joint comparisons in this way).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qsweep.evaluate.draws import Draws, Estimate, difference, p_values
from qsweep.evaluate.intervals import CONFIDENCE, sequence_p

if TYPE_CHECKING:
    from numpy import ndarray


@dataclass(frozen=True)
class RankRange:
    """The ranks that a model may have, 1 being the best: ``first`` to ``last``."""

    first: int
    last: int


@dataclass(frozen=True)
class PairTests:
    """What a test of every pair of models came to.

    Attributes:
        models: How many models.
        pairs: The pairs that may be told, by their numbers, that with less first.
        p: Their two-sided p-values.
    """

    models: int
    pairs: list[tuple[int, int]]
    p: list[float]

    def better(self, *, each_alone: bool = False) -> "ndarray":
        """Which model has less than which other, beyond noise: row less than column.

        Args:
            each_alone: Whether each pair is tested for itself at 5 %, for who asks of one pair alone;
                else the chance of a single false claim among all is 5 %, by Holm's procedure.

        Returns:
            bool [models, models].
        """
        import numpy as np

        found = np.zeros((self.models, self.models), bool)
        for pair, p in zip(self.pairs, self.p if each_alone else holm(self.p), strict=True):
            found[pair] = p < 1 - CONFIDENCE
        return found


def compare_pairs(
    models: Sequence[Draws],
    counts: "ndarray",
    untold: "ndarray | None" = None,
    *,
    read: "ndarray | None" = None,
    sequential: "ndarray | None" = None,
    least: int = 2,
) -> PairTests:
    """Test every pair of models over the windows that both have read, and over draws where there are several.

    The error of a difference is that of :func:`qsweep.evaluate.draws.difference`; of two models with
    one figure for each window that is a paired t-test over windows.

    Args:
        models: What less is better of, summed over each window's tokens.
        counts: Tokens of each window, [windows].
        untold: Pairs of which nothing is claimed whatever was measured, bool [models, models].
        read: Which windows each model has read, bool [models, windows]; None: all.
        sequential: Of which models the number of windows was decided by looking at them, bool
            [models]: pairs with one of these have p-values that hold at any stop.
        least: Nothing is claimed of a pair with fewer windows, at least two.
    """
    import numpy as np
    from scipy.special import stdtr

    counts = counts.astype(np.float64)
    told = ~np.eye(len(models), dtype=bool) if untold is None else ~untold
    read = np.ones((len(models), len(counts)), bool) if read is None else read
    looked = np.zeros(len(models), bool) if sequential is None else sequential
    once = np.array([len(model.sums) == 1 for model in models], bool)
    first = np.stack([model.sums[0] for model in models])
    pairs: list[tuple[int, int]] = []
    p: list[float] = []
    drawn: list[tuple[int, int, ndarray]] = []
    for one in range(len(models)):
        others = np.arange(one + 1, len(models))
        others = others[told[one, others]]
        both = read[others] & read[one]
        enough = both.sum(1) >= max(least, 2)
        others, both = others[enough], both[enough]
        quick = once[one] & once[others]
        gaps, t = _over_windows(first[others[quick]] - first[one], counts, both[quick])
        number, looks = both[quick].sum(1), looked[one] | looked[others[quick]]
        pairs += [_ordered(one, int(o), gap) for o, gap in zip(others[quick], gaps, strict=True)]
        p += list(np.where(looks, sequence_p(t, number), 2 * stdtr(number - 1, -np.abs(t))))
        drawn += [
            (one, int(o), which) for o, which in zip(others[~quick], both[~quick], strict=True)
        ]
    found = [_on(models[o], which, models[one], counts) for one, o, which in drawn]
    pairs += [_ordered(a, b, gap.value) for (a, b, _), gap in zip(drawn, found, strict=True)]
    looks = [bool(looked[a] | looked[b]) for a, b, _ in drawn]
    p += [
        _at_any_stop(gap) if look else value
        for value, gap, look in zip(p_values(found), found, looks, strict=True)
    ]
    return PairTests(len(models), pairs, p)


def _on(one: Draws, which: "ndarray", other: Draws, counts: "ndarray") -> Estimate:
    """The difference of two models over some windows, bool [windows]."""
    sides = [replace(side, sums=side.sums[:, which]) for side in (one, other)]
    return difference(sides[0], sides[1], counts[which])


def _at_any_stop(gap: Estimate) -> float:
    """1 less the confidence at which its interval, valid at any stop, ends at 0."""
    low, high = math.log(1e-16), 0.0
    for _ in range(45):
        middle = (low + high) / 2
        within = gap.half(1 - math.exp(middle), sequential=True) > abs(gap.value)
        low, high = (middle, high) if within else (low, middle)
    return math.exp(high)


def _over_windows(sums: "ndarray", counts: "ndarray", read: "ndarray") -> "tuple[ndarray, ndarray]":
    """Means per token of sums over the windows that were read, both [pairs, windows], and their t."""
    import numpy as np

    number, tokens = read.sum(1), (read * counts).sum(1)
    sums = np.where(read, sums, 0.0)
    gaps = sums.sum(1) / tokens
    squares = ((sums - gaps[:, None] * counts) ** 2 * read).sum(1) * number / (number - 1)
    # Copies of one another differ by nothing, and without noise.
    error = np.sqrt(squares) / tokens
    return gaps, np.divide(gaps, error, out=np.zeros_like(gaps), where=gaps != 0)


def _ordered(one: int, other: int, gap: float) -> tuple[int, int]:
    return (one, other) if gap > 0 else (other, one)


def rank_ranges(better: "ndarray") -> list[RankRange]:
    """The ranks that each model may have, from what :meth:`PairTests.better` says of all."""
    models = len(better)
    return [
        RankRange(1 + int(better[:, one].sum()), models - int(better[one].sum()))
        for one in range(models)
    ]


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: any below 5 % is significant at 5 % over the whole family."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted
