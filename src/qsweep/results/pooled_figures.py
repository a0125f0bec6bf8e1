"""One figure of several draws' figures, each with an interval that covers the draws, too. Pure.

A perplexity and its ratios are averaged as logarithms, everything else as it is. Of a figure whose
windows are not at hand the interval is made of the draws' own (:func:`qsweep.evaluate.draws.from_figures`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qsweep.base.contents import is_number
from qsweep.evaluate.draws import Estimate, from_figures
from qsweep.evaluate.intervals import student_t
from qsweep.evaluate.metrics import exponential, quality, quality_per_gb
from qsweep.evaluate.verdicts import is_open
from qsweep.results.columns.table import (
    PPL_RATIO,
    PPL_RATIO_HIGH,
    PPL_RATIO_LOW,
    QUALITY,
    QUALITY_PER_GB,
    VERDICT_SURE,
)
from qsweep.results.record import Figures


def mean_of(values: Sequence[Any]) -> Any:
    """Their mean; what all of them are where they are alike, None where they are no numbers."""
    if all(value == values[0] for value in values):
        return values[0]
    return math.fsum(values) / len(values) if all(map(is_number, values)) else None


def pooled_figures(
    found: Sequence[Figures],
    windows: int | None,
    known: Mapping[str, Estimate],
    size_gb: float | None = None,
) -> Figures:
    """The figures of one measurement, of those of its draws.

    Args:
        found: Each draw's.
        windows: How many windows they were measured on.
        known: By name, what the windows themselves say: of perplexities the logarithm's.
        size_gb: Of the artifact.
    """
    names = [name for name in found[0] if all(one.get(name) is not None for one in found)]
    pooled = Figures({name: _mean(name, [one[name] for one in found]) for name in names})
    for name in names:
        ends = [f"{name}{end}" for end in ("_stderr", "_low", "_high")]
        if pooled[name] is None or not any(end in pooled for end in ends):
            continue
        error = known.get(name) or _of_figures(name, found, windows)
        for end, value in _ends(name, pooled[name], error).items():
            if end in pooled:
                pooled[end] = value
    if (ratio := pooled.get(PPL_RATIO.name)) is not None:
        if QUALITY.name in pooled:
            pooled[QUALITY.name] = quality(ratio)
        if QUALITY_PER_GB.name in pooled and size_gb:
            pooled[QUALITY_PER_GB.name] = quality_per_gb(quality(ratio), size_gb)
        if VERDICT_SURE.name in pooled:
            low, high = (pooled.get(column.name) for column in (PPL_RATIO_LOW, PPL_RATIO_HIGH))
            pooled[VERDICT_SURE.name] = not is_open(low, high)
    return pooled


def _mean(name: str, values: Sequence[Any]) -> Any:
    if not _is_log(name) or not all(map(is_number, values)) or any(v <= 0 for v in values):
        return mean_of(values)
    if all(value == values[0] for value in values):
        return values[0]
    return exponential(math.fsum(map(math.log, values)) / len(values))


def _is_log(name: str) -> bool:
    return name.startswith("ppl")


def _ends(name: str, value: float, error: Estimate) -> dict[str, float | None]:
    """Its standard error and the ends of its interval; None where nothing is known of these.

    The error is such that t of the windows' degrees of freedom times it is half of the interval: who
    calculates with it needs not know of draws.
    """
    if not error.parts:
        return dict.fromkeys((f"{name}_stderr", f"{name}_low", f"{name}_high"))
    half = error.half()
    stderr = half / student_t(error.parts[0].freedom)
    if _is_log(name):
        stderr, low, high = value * stderr, value * exponential(-half), value * exponential(half)
    else:
        low, high = value - half, value + half
    return {f"{name}_stderr": stderr, f"{name}_low": low, f"{name}_high": high}


def _of_figures(name: str, found: Sequence[Figures], windows: int | None) -> Estimate:
    values, errors = [], []
    for one in found:
        value = one[name]
        error, low, high = (one.get(f"{name}{end}") for end in ("_stderr", "_low", "_high"))
        if _is_log(name):
            if not value > 0 or (low is not None and not low > 0):
                return Estimate(math.nan)
            error = None if error is None else error / value
            value = math.log(value)
            low, high = (None if end is None else math.log(end) for end in (low, high))
        if error is None and low is not None and high is not None and windows and windows > 1:
            error = (high - low) / 2 / student_t(windows - 1)
        if error is None:
            return Estimate(math.nan)
        values.append(value)
        errors.append(error)
    return from_figures(values, errors, windows or 0)
