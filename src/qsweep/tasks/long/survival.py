"""How many tokens a model's greedy answer stays the reference's: survival until they part. Pure.

An answer that came to its end, or to the most tokens that were allowed, without having parted is
censored there: it says only that it held so long. The share that is still the same after so many
tokens is estimated by the product limit (Kaplan and Meier, JASA 53, 1958), with Greenwood's variance
on the log-log scale; the median's interval is where the curve's own crosses one half (Brookmeyer and
Crowley, Biometrics 38, 1982).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

_LEVEL = 0.95


@dataclass(frozen=True)
class Survival:
    """The curve: from each of ``tokens`` on the share that is ``shares``; before the first it is 1.

    ``median`` with ``low`` and ``high`` is where it falls to one half; None: not within what was seen.
    """

    tokens: tuple[int, ...]
    shares: tuple[float, ...]
    median: int | None
    low: int | None
    high: int | None


def departure(own: Sequence[int], reference: Sequence[int]) -> tuple[int, bool]:
    """The first token, counted from 1, at which two answers differ, and whether they do at all.

    Answers hold the token that ends them: one that goes on where the other ends has departed there.
    """
    for number, (a, b) in enumerate(zip(own, reference, strict=False), 1):
        if a != b:
            return number, True
    shorter, longer = sorted((len(own), len(reference)))
    return (shorter + 1, True) if shorter < longer else (shorter, False)


def survival(times: Sequence[int], departed: Sequence[bool]) -> Survival:
    """The product-limit curve of departures.

    Args:
        times: Tokens until the departure, or until the answer was over.
        departed: Whether it was a departure.
    """
    import numpy
    from scipy.stats import CensoredData, ecdf

    seen = [time for time, event in zip(times, departed, strict=True) if event]
    if not seen:
        return Survival((), (), None, None, None)
    held = [time for time, event in zip(times, departed, strict=True) if not event]
    found = ecdf(CensoredData(uncensored=seen, right=held)).sf
    with warnings.catch_warnings(), numpy.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")  # that a bound is not defined where no answer is left
        around = found.confidence_interval(_LEVEL, method="log-log")
    steps = [n for n, time in enumerate(found.quantiles) if time in set(seen)]

    def falls_to_half(shares: Sequence[float], undefined: float = 0.0) -> int | None:
        # A bound is not defined where no answer is left. There the curve itself is 0, and so is what
        # lies below it; how far above it the truth may be nothing tells.
        values = ((n, float(shares[n])) for n in steps)
        below = (n for n, share in values if (undefined if math.isnan(share) else share) <= 0.5)
        return next((int(found.quantiles[n]) for n in below), None)

    return Survival(
        tokens=tuple(int(found.quantiles[n]) for n in steps),
        shares=tuple(float(found.probabilities[n]) for n in steps),
        median=falls_to_half(found.probabilities),
        low=falls_to_half(around.low.probabilities),
        high=falls_to_half(around.high.probabilities, undefined=1.0),
    )
