"""From records to rows, and from rows to ``results.csv``."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from qsweep.base.numbers import one_line
from qsweep.evaluate.metrics import quality_per_gb
from qsweep.results.columns.table import (
    KLD_FLOOR_BATCH,
    KLD_FLOOR_DTYPE,
    QUALITY_PER_GB,
    SIZE_GB,
)
from qsweep.results.columns.views import csv_columns, figure
from qsweep.results.labels import with_distinct_names
from qsweep.results.model_names import with_distinct_models
from qsweep.results.record import Record, Row
from qsweep.results.ties import is_silent

CorpusPreset = tuple[str, str]

_STATUS_ORDER = {"finished": 0, "failed": 1, "skipped": 2}


def rows(records: Iterable[Record]) -> list[Row]:
    """One row per trial, corpus and preset, best quality per GB first.

    A trial's rows stay together, the primary one first. A failed or skipped trial has one row
    without figures.
    """
    records = list(records)
    named = {record.key: record for record in with_distinct_names(records)}
    floors = noise_floors(records)
    return [
        row for record in ranked(records) for row in _rows_of(record, floors, named[record.key])
    ]


def ranked(records: Iterable[Record]) -> list[Record]:
    """Finished trials by quality per GB, best first; then the failed ones, then the skipped.

    Those of the silent zone count as equally good, so that among them the smallest is first.
    """

    def order(record: Record) -> tuple[int, float, str, str]:
        value, size = figure(record, QUALITY_PER_GB), figure(record, SIZE_GB)
        if value is not None and size and is_silent(Row(record, record.primary)):
            value = quality_per_gb(1.0, size)
        rank = -value if value is not None and math.isfinite(value) else math.inf
        return (_STATUS_ORDER.get(record.status, 3), rank, record.name, record.key)

    return sorted(records, key=order)


def counts(records: Iterable[Record]) -> dict[str, int]:
    """How many trials finished, failed and were skipped."""
    found = Counter(record.status for record in records)
    return {status: found[status] for status in _STATUS_ORDER}


def places(records: Iterable[Record]) -> list[CorpusPreset]:
    """The corpora and presets that were measured, the primary one first, then in their order."""
    found: dict[CorpusPreset, bool] = {}
    for record in records:
        for measurement in record.measurements:
            found[measurement.place] = found.get(measurement.place, False) or measurement.primary
    return sorted(found, key=lambda place: not found[place])


def to_csv(rows: Iterable[Row]) -> str:
    """Rows as CSV with a header, numbers in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = csv_columns()
    writer.writerow([column.name for column in columns])
    for row in rows:
        writer.writerow([_csv_cell(column.get(row)) for column in columns])
    return out.getvalue()


def noise_floors(records: Iterable[Record]) -> dict[tuple[str, str, str], float]:
    """By model, corpus and preset: the KLD that dtype or batch size alone cause.

    Below it a divergence says nothing. Measured on the reference, the larger of the two counts.
    """
    floors: dict[tuple[str, str, str], float] = {}
    for record in with_distinct_models(list(records)):
        for measurement in record.measurements:
            row = Row(record, measurement)
            found = [KLD_FLOOR_DTYPE.get(row), KLD_FLOOR_BATCH.get(row)]
            if known := [value for value in found if value is not None]:
                floors[record.model, *measurement.place] = max(known)
    return floors


def _rows_of(
    record: Record, floors: Mapping[tuple[str, str, str], float], named: Record
) -> list[Row]:
    if not record.finished or not record.measurements:
        return [Row(record, label=named.name)]
    return [
        Row(record, m, named.name, noise_floor=floors.get((named.model, *m.place)))
        for m in sorted(record.measurements, key=lambda m: not m.primary)
    ]


def _csv_cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    text = one_line(value)
    # A spreadsheet would run what begins like a formula.
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
