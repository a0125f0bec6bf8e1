"""The big table: a row per trial, corpus and preset, with values to sort by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qsweep.results.columns.column import Column
from qsweep.results.columns.table import (
    BPW,
    CALIBRATION,
    FORMAT,
    LABEL,
    MEASURED_ON,
    NATIVE_ON,
    NUMBER_FORMAT,
    PEER,
    PPL,
    PPL_RATIO,
    PRIMARY,
    RETENTIONS,
    RUNTIMES,
    SIZE_GB,
    SWEEP,
    VERDICT,
    retention,
)
from qsweep.results.columns.views import columns_of
from qsweep.results.html import capabilities
from qsweep.results.html.data import Group, is_finite
from qsweep.results.record import Row
from qsweep.tasks.task import CAPABILITIES

# A page with more rows than this is neither read nor loaded quickly; results.csv has them all.
MOST_ROWS = 500


@dataclass(frozen=True)
class Heading:
    """A heading, what it means, and whether its cells are numbers."""

    heading: str
    meaning: str
    numeric: bool


@dataclass(frozen=True)
class Table:
    """What the page needs: columns, and rows of (text, value) with what they are filtered by."""

    columns: Sequence[Heading]
    rows: Sequence[dict[str, Any]]
    total: int
    places: Sequence[str]
    series: Sequence[str]
    verdicts: Sequence[str]


_WORDS = (
    *(LABEL, FORMAT, NUMBER_FORMAT, CALIBRATION, VERDICT, RUNTIMES, NATIVE_ON),
    *(MEASURED_ON, SWEEP, PEER),
)
_VERDICTS = ("reference", "yes", "usually", "marginal", "problematic")
_ALWAYS = (LABEL, BPW, SIZE_GB, PPL, PPL_RATIO, VERDICT)


def table(group: Group, rows: Sequence[Row]) -> Table:
    """The table of a group's rows, best quality per GB first; ``rows`` may have their peers."""
    rows = sorted(rows, key=lambda row: PRIMARY.get(row) is not True)
    columns = [c for c in _columns(capabilities.names(group)) if c in _ALWAYS or _has(c, rows)]
    places = list(dict.fromkeys(MEASURED_ON.cell(row) for row in rows))
    if len(places) < 2:
        columns.remove(MEASURED_ON)
    if len({row.record.sweep for row in rows}) < 2 and SWEEP in columns:
        columns.remove(SWEEP)
    return Table(
        columns=[_heading(column) for column in columns],
        rows=[_row(columns, row) for row in rows[:MOST_ROWS]],
        total=len(rows),
        places=places,
        series=sorted({row.series for row in rows}),
        verdicts=[v for v in _VERDICTS if any(_verdict(row) == v for row in rows)],
    )


def _columns(capabilities_: Sequence[str]) -> list[Column]:
    # What is kept of a capability has a column where the table knows it or a user named it.
    others = set(capabilities_) - set(CAPABILITIES)
    found = columns_of("html")
    after = found.index(RETENTIONS[-1]) + 1
    return [*found[:after], *map(retention, sorted(others)), *found[after:]]


def _heading(column: Column) -> Heading:
    shown = column.shown("html")
    return Heading(shown.heading if shown else "", column.meaning, column not in _WORDS)


def _row(columns: Sequence[Column], row: Row) -> dict[str, Any]:
    sort = [(column.sort or column.get)(row) for column in columns]
    texts = [column.cell(row, "html") for column in columns]
    return {
        "cells": [(text, _sortable(value)) for text, value in zip(texts, sort, strict=True)],
        "place": MEASURED_ON.cell(row),
        "series": row.series,
        "verdict": _verdict(row),
    }


def _has(column: Column, rows: Sequence[Row]) -> bool:
    return any(column.cell(row, "html") for row in rows[:MOST_ROWS])


def _sortable(value: Any) -> str:
    if isinstance(value, bool) or not is_finite(value):
        return "" if value is None else str(value)
    return f"{value:.8g}"


def _verdict(row: Row) -> str:
    return VERDICT.cell(row).rstrip("?")
