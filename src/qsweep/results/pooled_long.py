"""What the long answers of several draws suffered, as one. Pure."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from qsweep.evaluate.draws import from_intervals
from qsweep.results.pooled_figures import mean_of
from qsweep.tasks.long.compare import LongFigures

_MEANS = (
    "length", "reference_length", "length_ratio", "truncated", "loops", "reference_truncated",
    "reference_loops", "departed",
)  # fmt: skip


def pooled_long(draws: Sequence[LongFigures | None]) -> LongFigures | None:
    """The means of draws' figures; None where not all of them gave long answers.

    The curve is the mean of theirs, as far as all of them are known, and where half have departed is
    read from it; an interval of that, which would have to cover the draws, there is not.
    """
    found = [one for one in draws if one is not None]
    if not found or len(found) < len(draws):
        return None
    if len(found) == 1:
        return found[0]
    ratios = [(one.length_ratio_low, one.length_ratio_high) for one in found]
    low, high = from_intervals([one.length_ratio for one in found], ratios, (0.0, math.inf))
    longest = _longest(found)
    tokens = sorted({token for one in found for token in one.tokens if token <= longest})
    shares = [math.fsum(_share(one, token) for one in found) / len(found) for token in tokens]
    below = (token for token, share in zip(tokens, shares, strict=True) if not share > 0.5)
    return replace(
        found[0],
        **{name: mean_of([getattr(one, name) for one in found]) for name in _MEANS},
        length_ratio_low=low,
        length_ratio_high=high,
        longest=longest,
        divergence_token=next(below, None),
        divergence_token_low=None,
        divergence_token_high=None,
        tokens=tuple(tokens),
        shares=tuple(shares),
    )


def _longest(found: Sequence[LongFigures]) -> int:
    # Where all answers of a draw have departed, none come back: its curve goes on at 0.
    open_ended = [one.longest for one in found if not one.shares or one.shares[-1] > 0]
    return min(open_ended) if open_ended else max(one.longest for one in found)


def _share(one: LongFigures, token: int) -> float:
    before = bisect_right(one.tokens, token)
    return one.shares[before - 1] if before else 1.0
