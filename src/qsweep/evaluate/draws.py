"""What several draws of one setting say together: an interval that covers windows and draws. Pure.

A calibrated artifact is one draw: another sample of the calibration text, or another seed of the
quantizer, makes another. Draws s and windows w are crossed, every artifact being measured on every
window, so that a figure is y[s, w] = mean + draw s + window w + what is left over, and what S draws
of W windows leave open of its mean is estimated from the mean squares of a two-way analysis of
variance (Searle, Casella and McCulloch, Variance Components, 1992, chapter 4):

- over windows, v_w = MS_w / (S W), with W - 1 degrees of freedom,
- over draws, v_s = max(MS_s - share * MS_e, 0) / (S W), with S - 1,

where MS_w already holds what is left over once. With a share of 1 their sum is unbiased, but few
draws estimate v_s so badly that intervals made of it cover too little: the share is (S - 2)/(S - 1),
none with two draws. Each part alone would reach t sqrt(v) to each side, with a t of its own freedom;
both together reach the root of the sum of the squares (Howe 1974, J. Am. Stat. Assoc. 69; the "square and
add" of Zou and Donner 2008). ``bench/coverage.py`` has how often that covers the truth.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from qsweep.evaluate.intervals import CONFIDENCE, sequence_t, student_t

if TYPE_CHECKING:
    from numpy import ndarray


class Part(NamedTuple):
    """A part of an estimate's variance, and the degrees of freedom that it is known with."""

    variance: float
    freedom: float


@dataclass(frozen=True)
class Estimate:
    """A mean, and the independent parts of its error; without parts nothing is known of that."""

    value: float
    parts: tuple[Part, ...] = ()

    def half(self, confidence: float = CONFIDENCE, *, sequential: bool = False) -> float:
        """How far its interval reaches to each side; infinite if nothing is known of its error.

        ``sequential``: the number of windows was decided by looking at them, so that what they leave
        open is as wide as a confidence sequence (:mod:`qsweep.evaluate.intervals`).
        """
        if not self.parts:
            return math.inf
        over_windows, *over_draws = self.parts
        if sequential:
            reach = sequence_t(round(over_windows.freedom) + 1, confidence)
        else:
            reach = student_t(over_windows.freedom, confidence)
        if math.isinf(reach):
            return math.inf  # nothing is excluded yet, were the windows all alike
        more = (student_t(part.freedom, confidence) * part.variance**0.5 for part in over_draws)
        return math.hypot(reach * over_windows.variance**0.5, *more)

    @property
    def p(self) -> float:
        """Two-sided, of a mean of 0: the interval of confidence 1 - p ends there."""
        return float(p_values([self])[0])


@dataclass(frozen=True)
class Draws:
    """What each draw of a setting came to: float64 [draws, windows], summed over each window's tokens.

    ``seeds`` tell draws apart, each what drew one; none where it is one figure that rests on no draw.
    """

    sums: "ndarray"
    seeds: tuple[Hashable, ...] = ()


def estimate(sums: "ndarray", counts: "ndarray") -> Estimate:
    """The mean per token over all draws and windows; with one draw it covers windows alone.

    Windows weigh by their tokens, by the linearised ratio estimator of ``metrics.clustered_mean``:
    what is analysed is (S_w - n_w mean) / mean(n), each draw with its own mean.

    Args:
        sums: Of what is averaged, float64 [draws, windows].
        counts: Tokens of each window, [windows].
    """
    found = _analysed(sums, counts)
    return Estimate(found.mean, _parts(found.windows, found.draws))


def difference(one: Draws, other: Draws, counts: "ndarray") -> Estimate:
    """The mean per token of ``one`` less ``other``, measured on the same windows.

    Draws of the same seed share their calibration text, and are paired, where those of both are most
    of either's: a pair of eight says less than all eight. What rests on no draw is the same beside
    each draw of the other. One that was drawn once tells nothing of its other draws, which count as
    far apart as the other setting's do. Else draws count as independent: their parts add up, with the
    degrees of freedom of Welch and Satterthwaite.
    """
    shared = [seed for seed in one.seeds if seed in other.seeds]
    if len(shared) > 1 and 2 * len(shared) > max(len(one.seeds), len(other.seeds)):
        return estimate(_of(one, shared) - _of(other, shared), counts)
    if min(len(one.sums), len(other.sums)) == 1:
        found = estimate(one.sums - other.sums, counts)
        if one.seeds and other.seeds:
            return _with_one_more(found, max(len(one.sums), len(other.sums)))
        return found
    sides = [_analysed(side.sums, counts) for side in (one, other)]
    mean = sides[0].mean - sides[1].mean
    return Estimate(mean, _parts(sides[0].windows - sides[1].windows, _added(*sides)))


def from_figures(values: Sequence[float], errors: Sequence[float], windows: int) -> Estimate:
    """The same of draws of which no windows are at hand, but figures and their errors over windows.

    How far draws share their windows' error is not known then. It counts as if they shared all of it,
    and again where it moves them apart, so that the interval is rather too wide.
    """
    draws = len(values)
    mean = math.fsum(values) / draws
    parts = []
    if windows > 1:
        parts.append(Part(math.fsum(error**2 for error in errors) / draws, windows - 1))
        if draws > 1:
            apart = math.fsum((value - mean) ** 2 for value in values) / (draws - 1)
            parts.append(Part(apart / draws, draws - 1))
    return Estimate(mean, tuple(parts))


def from_intervals(
    values: Sequence[float],
    ends: Sequence[tuple[float, float]],
    within: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, float]:
    """The ends of the mean's interval, where draws have intervals of their own that may be lopsided.

    As :func:`from_figures`, but each side by itself, as Zou and Donner square and add: to how far the
    draws' own intervals reach there, as a root mean square, t times the mean's standard error over
    draws. Draws that say the same leave an interval as it is.

    Args:
        values: Each draw's figure.
        ends: Low and high end of each one's interval over windows or samples.
        within: What the figure cannot leave.
    """
    draws = len(values)
    mean = math.fsum(values) / draws
    apart = 0.0
    if draws > 1:
        variance = math.fsum((value - mean) ** 2 for value in values) / (draws - 1)
        apart = student_t(draws - 1) ** 2 * variance / draws
    pairs = list(zip(values, ends, strict=True))
    below = math.fsum((value - low) ** 2 for value, (low, _) in pairs) / draws
    above = math.fsum((high - value) ** 2 for value, (_, high) in pairs) / draws
    low, high = mean - math.sqrt(below + apart), mean + math.sqrt(above + apart)
    return max(low, within[0]), min(high, within[1])


def p_values(estimates: Sequence[Estimate]) -> "ndarray":
    """:attr:`Estimate.p` of each, float64 [estimates]; 1 where nothing is known of an error.

    Of several parts it is found by bisection of log p, down to 1e-16.
    """
    import numpy as np
    from scipy.special import stdtr, stdtrit

    most = max([1, *(len(one.parts) for one in estimates)])
    padded = [(*one.parts, *[Part(0.0, 1)] * (most - len(one.parts))) for one in estimates]
    variances = np.array([[p.variance for p in parts] for parts in padded]).reshape(-1, most)
    freedoms = np.array([[p.freedom for p in parts] for parts in padded]).reshape(-1, most)
    values = np.abs([one.value for one in estimates])
    total = variances.sum(1)
    known = np.array([bool(one.parts) for one in estimates], bool)
    # Copies of one another differ by nothing, and without noise.
    result = np.where((values > 0) & known, 0.0, 1.0)
    noisy = known & (total > 0) & (values > 0)
    if not noisy.any():
        return result
    share = variances[noisy] / total[noisy, None]
    t, freedom = values[noisy] / np.sqrt(total[noisy]), freedoms[noisy]
    if most == 1:
        result[noisy] = 2 * stdtr(freedom[:, 0], -t)
        return result
    ends: list[ndarray] = [np.full(len(t), math.log(1e-16)), np.zeros(len(t))]
    for _ in range(45):
        middle = (ends[0] + ends[1]) / 2
        within = (share * stdtrit(freedom, np.exp(middle)[:, None] / 2) ** 2).sum(1) > t**2
        ends = [np.where(within, middle, ends[0]), np.where(within, ends[1], middle)]
    result[noisy] = np.exp(ends[1])
    return result


class _Analysed(NamedTuple):
    """The mean, each window's mean deviation from it [windows], and the part of the draws."""

    mean: float
    windows: "ndarray"
    draws: Part | None


def _analysed(sums: "ndarray", counts: "ndarray") -> _Analysed:
    draws, windows = sums.shape
    per_token = windows / counts.sum()
    means = sums.sum(1) / counts.sum()
    mean = means.mean()
    rest = (sums - means[:, None] * counts) * per_token
    by_window = rest.mean(0)
    part = None
    if draws > 1 and windows > 1:
        between = windows * ((means - mean) ** 2).sum() / (draws - 1)
        left = ((rest - by_window) ** 2).sum() / ((draws - 1) * (windows - 1))
        share = (draws - 2) / (draws - 1)
        variance = max(between - share * left, 0.0) / (draws * windows)
        part = Part(float(variance), draws - 1)
    return _Analysed(float(mean), by_window, part)


def _added(one: _Analysed, other: _Analysed) -> Part | None:
    if one.draws is None or other.draws is None:
        return None
    variances = [one.draws.variance, other.draws.variance]
    freedoms = [one.draws.freedom, other.draws.freedom]
    total = sum(variances)
    if not total:
        return Part(0.0, min(freedoms))
    least = sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    return Part(total, total**2 / least)


def _with_one_more(found: Estimate, draws: int) -> Estimate:
    """An estimate over several draws, less a figure that rests on a single one: it varies as one of these."""
    over_windows, over_draws = found.parts[:1], found.parts[1:]
    wider = (Part((1 + draws) * part.variance, part.freedom) for part in over_draws)
    return Estimate(found.value, (*over_windows, *wider))


def _parts(deviations: "ndarray", draws: Part | None) -> tuple[Part, ...]:
    windows = len(deviations)
    if windows < 2:
        return ()
    over_windows = Part(float((deviations**2).sum() / (windows * (windows - 1))), windows - 1)
    return (over_windows,) if draws is None else (over_windows, draws)


def _of(draws: Draws, seeds: Sequence[Hashable]) -> Any:
    return draws.sums[[draws.seeds.index(seed) for seed in seeds]]
