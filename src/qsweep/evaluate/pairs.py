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

from qsweep.evaluate.metrics import CONFIDENCE

if TYPE_CHECKING:
    from numpy import ndarray


@dataclass(frozen=True)
class RankRange:
    """The ranks that a model may have, 1 being the best: ``first`` to ``last``."""

    first: int
    last: int


def better_than(
    sums: "ndarray",
    counts: "ndarray",
    untold: "ndarray | None" = None,
    *,
    each_alone: bool = False,
) -> "ndarray":
    """Which model has less of something than which other, beyond noise.

    Args:
        sums: Of what less is better, summed over each window's tokens, float64 [models, windows].
        counts: Tokens of each window, [windows]; at least two windows.
        untold: Pairs of which nothing is claimed whatever was measured, bool [models, models].
        each_alone: Whether each pair is tested for itself at 5 %, for who asks of one pair alone.

    Returns:
        bool [models, models]: whether the row's model has less than the column's, by paired t-tests
        over windows (the linearised ratio estimator of ``metrics.clustered_mean``), under Holm's
        procedure at 5 % over all pairs that may be told, unless ``each_alone``.
    """
    import numpy as np
    from scipy.special import stdtr

    models, windows = sums.shape
    counts = counts.astype(np.float64)
    means = sums.sum(1) / counts.sum()
    rest = sums - means[:, None] * counts
    better = np.zeros((models, models), bool)
    pairs: list[tuple[int, int]] = []
    p: list[float] = []
    for one in range(models):
        others = np.arange(one + 1, models)
        if untold is not None:
            others = others[~untold[one, others]]
        gaps = means[others] - means[one]
        squares = ((rest[others] - rest[one]) ** 2).sum(1) * windows / (windows - 1)
        errors = np.sqrt(squares) / counts.sum()
        # Copies of one another differ by nothing, and without noise.
        t = np.divide(gaps, errors, out=np.zeros_like(gaps), where=gaps != 0)
        pairs += [
            (one, int(other)) if gap > 0 else (int(other), one)
            for other, gap in zip(others, gaps, strict=True)
        ]
        p += list(2 * stdtr(windows - 1, -np.abs(t)))
    for pair, adjusted in zip(pairs, p if each_alone else holm(p), strict=True):
        better[pair] = adjusted < 1 - CONFIDENCE
    return better


def rank_ranges(better: "ndarray") -> list[RankRange]:
    """The ranks that each model may have, from what :func:`better_than` says of all."""
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
