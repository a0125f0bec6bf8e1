"""The big table: a row per trial, corpus and preset, with values to sort by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qsweep.base import numbers as cells
from qsweep.results.html import capabilities
from qsweep.results.html.answer import can_ship
from qsweep.results.html.data import Group, is_finite, verdict_of
from qsweep.results.rows import Row

# A page with more rows than this is neither read nor loaded quickly; results.csv has them all.
MOST_ROWS = 500


@dataclass(frozen=True)
class Column:
    """A heading, what it means, the text of a cell, and what its rows are sorted by."""

    heading: str
    meaning: str
    text: Callable[[Row], str]
    value: Callable[[Row], Any]

    @property
    def numeric(self) -> bool:
        """Whether its cells are numbers."""
        return self.heading not in _WORDS


@dataclass(frozen=True)
class Table:
    """What the page needs: columns, and rows of (text, value) with what they are filtered by."""

    columns: Sequence[Column]
    rows: Sequence[dict[str, Any]]
    total: int
    places: Sequence[str]
    series: Sequence[str]
    verdicts: Sequence[str]


_WORDS = ("trial", "format", "calibration", "verdict", "served by", "measured on", "sweep")
_VERDICTS = ("reference", "yes", "usually", "marginal", "problematic")


def table(group: Group) -> Table:
    """The table of a group, best quality per GB first."""
    rows = sorted(group.rows, key=lambda row: not row.get("primary"))
    retained = {r["key"]: capabilities.retentions(r) for r in group.records}
    names = capabilities.names(group)
    columns = [c for c in _columns(names, retained) if c.heading in _ALWAYS or _has(c, rows)]
    places = list(dict.fromkeys(_place(row) for row in rows))
    if len(places) < 2:
        columns = [c for c in columns if c.heading != "measured on"]
    if len({row.get("sweep") for row in rows}) < 2:
        columns = [c for c in columns if c.heading != "sweep"]
    return Table(
        columns=columns,
        rows=[_row(columns, row) for row in rows[:MOST_ROWS]],
        total=len(rows),
        places=places,
        series=sorted({row["series"] for row in rows}),
        verdicts=[v for v in _VERDICTS if any(_verdict(row).rstrip("?") == v for row in rows)],
    )


_ALWAYS = ("trial", "bpw", "size GB", "ppl", "ratio", "verdict")


def _columns(names: Sequence[str], retained: dict[str, Any]) -> list[Column]:
    def figure(name: str) -> Callable[[Row], Any]:
        return lambda row: row.get(name)

    def retention(name: str) -> Column:
        def value(row: Row) -> Any:
            return retained.get(row["key"], {}).get(name, {}).get("retention")

        meaning = f"share of the reference's {name} score above chance that is left"
        return Column(name, meaning, lambda row: cells.percent(value(row)), value)

    return [
        Column("trial", "model and setting", figure("label"), figure("label")),
        Column("format", "file format", lambda r: str(r.get("format") or ""), figure("format")),
        Column("bits", "nominal bits", lambda r: _plain(r.get("bits")), figure("bits")),
        Column("bpw", "bits per weight of the quantized layers, scales included",
               lambda r: cells.fixed(r.get("bpw"), 2), figure("bpw")),
        Column("size GB", "bytes of all weight files / 1e9",
               lambda r: cells.gigabytes(r.get("size_gb")), figure("size_gb")),
        Column("ppl", "perplexity ± standard error over windows",
               lambda r: cells.with_error(r.get("ppl"), r.get("ppl_stderr")), figure("ppl")),
        Column("ratio", "perplexity / the reference's, paired 95 % interval", _ratio,
               figure("ppl_ratio")),
        Column("expected", "the field's expected ratio", _expected, figure("expected_low")),
        Column("KLD", "mean KL divergence per token, nats ± standard error",
               lambda r: cells.with_error(r.get("kld"), r.get("kld_stderr")), figure("kld")),
        Column("KLD p99", "99th percentile over tokens, nats",
               lambda r: cells.significant(r.get("kld_p99"), 3), figure("kld_p99")),
        Column("top-1", "how often both prefer the same token",
               lambda r: cells.percent(r.get("top1_agreement")), figure("top1_agreement")),
        *(retention(name) for name in names),
        Column("decode tok/s", "tokens per second, batch 1, on the serving kernel",
               lambda r: cells.significant(r.get("decode_tps"), 3), figure("decode_tps")),
        Column("prefill tok/s", "tokens per second of a long prompt",
               lambda r: cells.significant(r.get("prefill_tps"), 3), figure("prefill_tps")),
        Column("quality/GB", "quality (1: the reference, 0: ratio 1.20) per GB",
               lambda r: cells.significant(r.get("quality_per_gb"), 4), figure("quality_per_gb")),
        Column("verdict", "by the ratio; ? where its interval straddles a bound", _verdict,
               lambda r: -1 if r.get("reference") else r.get("ppl_ratio")),
        Column("calibration", "text the quantizer saw", lambda r: str(r.get("calibration") or ""),
               figure("calibration")),
        Column("calibration tokens", "different tokens of that text that it saw, of those asked for",
               _calibration, figure("calibration_tokens_distinct")),
        Column("served by", "runtimes that load it", _served, figure("runtimes")),
        Column("time", "to quantize and to measure", lambda r: cells.seconds(_seconds(r)),
               _seconds),
        Column("measured on", "corpus, preset", _place, _place),
        Column("sweep", "which sweep", lambda r: str(r.get("sweep") or ""), figure("sweep")),
    ]  # fmt: skip


def _row(columns: Sequence[Column], row: Row) -> dict[str, Any]:
    return {
        "cells": [(column.text(row), _sortable(column.value(row))) for column in columns],
        "place": _place(row),
        "series": row["series"],
        "verdict": _verdict(row).rstrip("?"),
    }


def _has(column: Column, rows: Sequence[Row]) -> bool:
    return any(column.text(row) for row in rows[:MOST_ROWS])


def _sortable(value: Any) -> str:
    if isinstance(value, bool) or not is_finite(value):
        return "" if value is None else str(value)
    return f"{value:.8g}"


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _ratio(row: Row) -> str:
    span = cells.interval(row.get("ppl_ratio_low"), row.get("ppl_ratio_high"))
    if row.get("reference"):
        span = ""
    return cells.ratio(row.get("ppl_ratio")) + (f" ({span})" if span else "")


def _expected(row: Row) -> str:
    low, high = row.get("expected_low"), row.get("expected_high")
    return "" if low is None or high is None else f"{low:.2f}-{high:.2f}"


def _verdict(row: Row) -> str:
    return "reference" if row.get("reference") else verdict_of(row)


def _calibration(row: Row) -> str:
    asked, distinct = row.get("calibration_tokens"), row.get("calibration_tokens_distinct")
    return "" if not asked or distinct is None else f"{distinct} of {asked}"


def _served(row: Row) -> str:
    words = str(row.get("runtimes") or "").replace(" ", ", ")
    return words if can_ship(row) or not words else f"{words} (no server)"


def _seconds(row: Row) -> float | None:
    spent = [row.get(name) for name in ("quantize_s", "evaluate_s")]
    known = [value for value in spent if is_finite(value)]
    return sum(known) if known else None


def _place(row: Row) -> str:
    return f"{row.get('corpus')} ({row.get('preset')})"
