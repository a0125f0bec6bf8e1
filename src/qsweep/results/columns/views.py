"""What each output takes of the table. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qsweep.base.contents import is_number
from qsweep.base.errors import QsweepError
from qsweep.results.columns.column import TABLE, Column, Table, plain
from qsweep.results.columns.table import CSV_ORDER, VERDICT
from qsweep.results.record import Record, Row


class UnknownFigure(QsweepError):
    """A figure without a column, or one that is no number."""


def csv_columns() -> list[Column]:
    """The columns of ``results.csv`` in their order; new ones follow those that are there."""
    known = {name: place for place, name in enumerate(CSV_ORDER)}
    chosen = [column for column in TABLE if column.csv]
    return sorted(chosen, key=lambda column: known.get(column.name, len(known)))


def columns_of(table: Table, rows: Iterable[Row] | None = None) -> list[Column]:
    """The columns that a table shows, in their order; of these rows, if they are given."""
    found = [column for column in TABLE if column.shown(table) is not None]
    if rows is None:
        return found
    rows = list(rows)

    def has_place(column: Column) -> bool:
        shown = column.shown(table)
        optional = shown is not None and shown.optional
        return not optional or any(column.cell(row, table) for row in rows)

    return [column for column in found if has_place(column)]


def headings(table: Table, rows: Iterable[Row] | None = None) -> list[str]:
    """Their headings."""
    shown = (column.shown(table) for column in columns_of(table, rows))
    return [one.heading for one in shown if one is not None]


def lines_of(rows: Iterable[Row], table: Table) -> list[list[str]]:
    """The cells of each row in a table of these rows."""
    rows = list(rows)
    shown = columns_of(table, rows)
    return [[column.cell(row, table) for column in shown] for row in rows]


def figures_of(of: str) -> list[Column]:
    """The measured numbers that belong to something."""
    return [column for column in TABLE if column.figure and column.of == of]


def searchable() -> dict[str, Column]:
    """By name, what a search can aim at without being told which way is better."""
    return {column.name: column for column in TABLE if column.better is not None}


def figure(record: Record, column: Column) -> Any:
    """A column's value of a trial, by its primary measurement; None if it has none."""
    return column.get(Row(record, record.primary))


def numbers_of(row: Any, of: str) -> Iterator[tuple[str, float]]:
    """Names and values of the measured numbers of a row (of a task, of a capability) that it has."""
    for column in figures_of(of):
        if is_number(value := column.get(row)):
            yield column.name, float(value)


def check_figures(of: str, found: Mapping[str, Any], where: str = "") -> None:
    """Refuse figures that the table has no row for, or that are no numbers.

    Raises:
        QsweepError: The line names the figure.
    """
    known = {column.name: column for column in TABLE if column.of == of}
    for name, value in found.items():
        place = f"{where}: " if where else ""
        if name == VERDICT.name:
            continue  # it lies among them, and a record keeps it beside them
        if name not in known:
            raise UnknownFigure(
                f"{place}no column of results/columns/table.py is called {name!r}: a figure of a {of} needs one"
            )
        if known[name].figure and value is not None and not is_number(value):
            raise UnknownFigure(f"{place}{name}: a number is wanted, not {plain(value)[:40]!r}")
