"""Which of several artifacts fit a memory budget at a context, and which of those is best. Pure.

The best is the one with the lowest perplexity of those that fit; whatever cannot be told from it on
the same windows is a tie, and of those that tie the smallest is named.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from qsweep.base import numbers
from qsweep.base.contents import is_number
from qsweep.base.errors import ConfigError
from qsweep.evaluate.serving_memory import Footprint, footprint
from qsweep.results.arrays import FindArrays, stored_arrays
from qsweep.results.columns.derived import interval
from qsweep.results.columns.table import PPL_RATIO, SIZE_GB, VERDICT
from qsweep.results.labels import with_distinct_names
from qsweep.results.peers import ties
from qsweep.results.record import Record, Row
from qsweep.results.windows import windows_of
from qsweep.results.winner import CONTEND_BY, contender, how_many_read, says_nothing

HEADINGS = (
    "artifact", "weights GB", "cache GB", "buffers GB", "total GB", "fits", "ratio (95 %)",
    "verdict", "",
)  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """A row, what serving it takes, and how it stands to the best that fits.

    Attributes:
        spare: Bytes of the budget that are left; below 0 it does not fit.
        place: ``best``, ``tie``, or nothing.
    """

    row: Row
    footprint: Footprint
    spare: int
    place: str = ""

    @property
    def fits(self) -> bool:
        """Whether it is within the budget."""
        return self.spare >= 0


@dataclass(frozen=True)
class BudgetAnswer:
    """The answer in a sentence, and a line for each artifact."""

    sentence: str
    fits: tuple[Fit, ...]

    @property
    def lines(self) -> list[list[str]]:
        """The table, for :data:`HEADINGS`."""
        return [_line(fit) for fit in self.fits]


def rows_of(records: Iterable[Record]) -> list[Row]:
    """A row for each artifact that was measured, as its verdict rests on, called apart from others."""
    named = with_distinct_names(list(records))
    return [Row(r, r.primary, r.name) for r in named if r.finished and not r.reference]


def fits(
    row: Row, config: Mapping[str, Any], budget: int, context: int, kv_cache: str = "f16"
) -> Fit:
    """Whether serving one sequence of a context takes no more than a budget.

    Args:
        row: The artifact.
        config: Its model's, see :func:`~qsweep.evaluate.serving_memory.serving_config`.
        budget: Bytes.
        context: Tokens.
        kv_cache: The cache's type.

    Raises:
        ConfigError: The type is unknown, or nothing says how large the artifact is.
    """
    size = SIZE_GB.get(row)
    if not is_number(size):
        raise ConfigError(f"{row.label}: nothing says how large it is")
    found = footprint(round(size * 1e9), config, context, kv_cache)
    return Fit(row, found, budget - found.total)


def budget_answer(
    rows: Sequence[Row],
    config: Mapping[str, Any],
    budget: int,
    context: int,
    kv_cache: str = "f16",
    find: FindArrays = stored_arrays,
) -> BudgetAnswer:
    """Which of some artifacts of one model fit, and which of them is best.

    Args:
        rows: Their primary measurements, of one corpus and preset, with their labels.
        config: The model's, see :func:`~qsweep.evaluate.serving_memory.serving_config`.
        budget: Bytes.
        context: Tokens of the one sequence that is served.
        kv_cache: The cache's type.
        find: Tells where a measurement's arrays are.

    Raises:
        ConfigError: See :func:`fits`.
    """
    found = [fits(row, config, budget, context, kv_cache) for row in rows if row.record.finished]
    able = [fit for fit in found if fit.fits and _ratio(fit.row) is not None]
    asked = f"{numbers.gigabytes(budget / 1e9)} GB at {context} tokens"
    if kv_cache != "f16":
        asked += f" (cache in {kv_cache})"
    if not able:
        return BudgetAnswer(_nothing(found, asked), tuple(sorted(found, key=_order)))
    best = min(able, key=_order)
    windows = partial(windows_of, find=find)
    tied = {fit.row.key for fit in able if fit is not best and ties(fit.row, best.row, windows)}
    placed = [
        Fit(f.row, f.footprint, f.spare, "best" if f is best else "tie" * (f.row.key in tied))
        for f in found
    ]
    placed.sort(key=_order)
    return BudgetAnswer(_sentence(placed, asked), tuple(placed))


def _sentence(placed: Sequence[Fit], asked: str) -> str:
    best = next(fit for fit in placed if fit.place == "best")
    others = [fit for fit in placed if fit.place == "tie"]
    words = f"{best.row.label} is the best of those that fit {asked}"
    if others:
        names = ", ".join(fit.row.label for fit in others)
        least = min([best, *others], key=lambda fit: fit.footprint.weights)
        words = (
            f"of those that fit {asked}, {best.row.label} has the lowest perplexity, but ties with "
            f"{names}: the smallest of them is {least.row.label}"
        )
    figures = contender(best.row.key, "", {**_figures(best.row), "quality_per_gb": 0.0})
    if figures is not None and (why := says_nothing(figures)):
        words += f"; {why}"
    unknown = sorted({kind for fit in placed for kind in fit.footprint.unknown})
    if unknown:
        words += f"; layers of the kind {', '.join(unknown)} are counted as full attention"
    return words


def _nothing(found: Sequence[Fit], asked: str) -> str:
    if not found:
        return f"nothing was measured that could fit {asked}"
    nearest = max(found, key=lambda fit: fit.spare)
    if nearest.fits:
        return f"of those that fit {asked} none has a perplexity to compare"
    return (
        f"none fits {asked}: {nearest.row.label} is nearest and needs "
        f"{numbers.gigabytes(-nearest.spare / 1e9)} GB more"
    )


def _line(fit: Fit) -> list[str]:
    print_ = fit.footprint
    sizes = (print_.weights, print_.cache, print_.buffers, print_.total)
    spare = numbers.gigabytes(abs(fit.spare) / 1e9)
    ratio = _ratio(fit.row)
    span = interval(fit.row)
    return [
        fit.row.label,
        *(numbers.gigabytes(size / 1e9) for size in sizes),
        f"yes, {spare} GB left" if fit.fits else f"no, {spare} GB too much",
        "" if ratio is None else numbers.ratio(ratio) + (f" ({span})" if span else ""),
        VERDICT.cell(fit.row),
        fit.place,
    ]


def _order(fit: Fit) -> tuple[Any, ...]:
    ratio = _ratio(fit.row)
    return (not fit.fits, math.inf if ratio is None else ratio, fit.footprint.weights, fit.row.key)


def _ratio(row: Row) -> float | None:
    value = PPL_RATIO.get(row)
    usable = is_number(value) and math.isfinite(value) and value > 0 and not row.no_verdict
    return value if usable else None


def _figures(row: Row) -> dict[str, Any]:
    return {column.name: column.get(row) for column in CONTEND_BY} | how_many_read(row.measurement)
