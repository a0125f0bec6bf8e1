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

from qsweep.evaluate.draws import Draws, difference, p_values
from qsweep.evaluate.metrics import CONFIDENCE

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
    models: "Sequence[Draws]", counts: "ndarray", untold: "ndarray | None" = None
) -> PairTests:
    """Test every pair of models, over windows and over the draws of what was drawn more than once.

    The error of a difference is that of :func:`qsweep.evaluate.draws.difference`; of two models with
    one figure for each window that is a paired t-test over windows.

    Args:
        models: What less is better of, summed over each window's tokens.
        counts: Tokens of each window, [windows]; at least two windows.
        untold: Pairs of which nothing is claimed whatever was measured, bool [models, models].
    """
    import numpy as np

    counts = counts.astype(np.float64)
    told = ~np.eye(len(models), dtype=bool) if untold is None else ~untold
    once = np.array([len(model.sums) == 1 for model in models], bool)
    first = np.stack([model.sums[0] for model in models])
    pairs: list[tuple[int, int]] = []
    p: list[float] = []
    drawn: list[tuple[int, int]] = []
    for one in range(len(models)):
        others = np.arange(one + 1, len(models))
        others = others[told[one, others]]
        quick = others[once[one] & once[others]]
        gaps, tested = _over_windows(first[quick] - first[one], counts)
        pairs += [_ordered(one, int(o), gap) for o, gap in zip(quick, gaps, strict=True)]
        p += list(tested)
        drawn += [(one, int(other)) for other in others if not (once[one] and once[other])]
    found = [difference(models[other], models[one], counts) for one, other in drawn]
    pairs += [_ordered(*pair, gap.value) for pair, gap in zip(drawn, found, strict=True)]
    return PairTests(len(models), pairs, [*p, *p_values(found)])


def _over_windows(sums: "ndarray", counts: "ndarray") -> "tuple[ndarray, ndarray]":
    """Means per token of sums [pairs, windows], and the p-values of their t-tests."""
    import numpy as np
    from scipy.special import stdtr

    windows, total = len(counts), counts.sum()
    gaps = sums.sum(1) / total
    squares = ((sums - gaps[:, None] * counts) ** 2).sum(1) * windows / (windows - 1)
    # Copies of one another differ by nothing, and without noise.
    t = np.divide(gaps, np.sqrt(squares) / total, out=np.zeros_like(gaps), where=gaps != 0)
    return gaps, 2 * stdtr(windows - 1, -np.abs(t))


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
