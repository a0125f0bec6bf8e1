"""What takes records, given them as they lie on disk: mappings, which a test can change at will."""

import functools
from dataclasses import replace

from qsweep.results.columns.column import TABLE
from qsweep.results.html.data import SweepData
from qsweep.results.record_file import record_of


def typed(value):
    """Records in place of the mappings in a value: one, several, or a sweep's."""
    if isinstance(value, dict) and {"key", "status"} <= value.keys():
        return record_of(value)
    if isinstance(value, SweepData):
        return replace(value, records=typed(value.records))
    if isinstance(value, (list, tuple)):
        return [typed(item) for item in value]
    return value


def on_disk(function):
    """The function, told of records as they lie on disk."""

    @functools.wraps(function)
    def call(*arguments, **options):
        return function(*map(typed, arguments), **options)

    return call


def values(row) -> dict:
    """A row as names and values; a figure that was not measured is not among them."""
    found = {}
    for column in TABLE:
        if column.of in ("task", "capability") or (
            row.measurement is None and column.of == "measurement"
        ):
            continue
        value = column.get(row)
        if value is not None or not column.figure:
            found[column.name] = value
    return found


def table(records) -> list[dict]:
    """The rows of records, each as names and values."""
    from qsweep.results.rows import rows

    return [values(row) for row in rows(typed(records))]
