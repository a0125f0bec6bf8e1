"""Which of several models, measured on the same windows, are better than which. Pure.

Every pair is compared by its own differences, window by window: how hard a window is falls out, so
that pairs are told apart which their intervals against the reference do not tell apart. Over all
pairs Holm's procedure keeps the chance of a single false claim below 5 %, so that all ranks that
follow from the claims hold together (Klein, Wright and Wieczorek 2020, J. R. Statist. Soc. A 183,
589-606, make ranks from joint comparisons in this way).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    sums: "ndarray",
    counts: "ndarray",
    untold: "ndarray | None" = None,
    *,
    read: "ndarray | None" = None,
    sequential: "ndarray | None" = None,
    least: int = 2,
) -> PairTests:
    """Test every pair of models by paired t-tests over the windows that both have read.

    The error of a difference is that of ``metrics.clustered_mean``, the linearised ratio estimator.

    Args:
        sums: Of what less is better, summed over each window's tokens, float64 [models, windows].
        counts: Tokens of each window, [windows].
        untold: Pairs of which nothing is claimed whatever was measured, bool [models, models].
        read: Which windows each model has read, bool [models, windows]; None: all.
        sequential: Of which models the number of windows was decided by looking at them, bool
            [models]: pairs with one of these have p-values that hold at any stop.
        least: Nothing is claimed of a pair with fewer windows, at least two.
    """
    import numpy as np
    from scipy.special import stdtr

    models, windows = sums.shape
    counts = counts.astype(np.float64)
    read = np.ones(sums.shape, bool) if read is None else read
    looked = np.zeros(models, bool) if sequential is None else sequential
    pairs: list[tuple[int, int]] = []
    p: list[float] = []
    for one in range(models):
        others = np.arange(one + 1, models)
        if untold is not None:
            others = others[~untold[one, others]]
        both = read[others] & read[one]
        number = both.sum(1)
        others, both, number = (found[number >= max(least, 2)] for found in (others, both, number))
        tokens = (both * counts).sum(1)
        apart = np.where(both, sums[others] - sums[one], 0.0)
        gaps = apart.sum(1) / tokens
        squares = ((apart - gaps[:, None] * counts) ** 2 * both).sum(1) * number / (number - 1)
        errors = np.sqrt(squares) / tokens
        # Copies of one another differ by nothing, and without noise.
        t = np.divide(gaps, errors, out=np.zeros_like(gaps), where=gaps != 0)
        pairs += [
            (one, int(other)) if gap > 0 else (int(other), one)
            for other, gap in zip(others, gaps, strict=True)
        ]
        single = 2 * stdtr(number - 1, -np.abs(t))
        p += list(np.where(looked[one] | looked[others], sequence_p(t, number), single))
    return PairTests(models, pairs, p)


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
