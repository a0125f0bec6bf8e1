"""What a column is: a figure or a fact of a row, what it means, and where it is shown. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qsweep.base import numbers
from qsweep.base.numbers import one_line
from qsweep.results.record import Row

Of = Literal["trial", "artifact", "measurement", "speed", "task", "capability", "row"]
Table = Literal["terminal", "markdown", "html", "card", "search", "own_run"]
Text = Callable[[Any], str]


def plain(value: Any) -> str:
    """A value as it is; nothing for None."""
    return "" if value is None else one_line(value)


@dataclass(frozen=True)
class Shown:
    """How a table shows a column.

    Attributes:
        heading: Above the column.
        min_width: The narrowest terminal that has room for it; ``narrow`` is what a narrower one
            shows instead, if anything.
        cell: Its text, where it is not the column's own.
        optional: Whether it is left out where no row has anything in it.
    """

    heading: str
    min_width: int = 0
    cell: Callable[[Row], str] | None = None
    narrow: Callable[[Row], str] | None = None
    optional: bool = False


@dataclass(frozen=True, eq=False)
class Column:
    """One figure or fact.

    Attributes:
        name: In ``results.csv``, in MLflow and in a search.
        meaning: What it is, in a sentence without a full stop.
        of: What it belongs to: a trial as a whole, its artifact, each of its measurements, a timing,
            a task, a capability; ``row``: what only a table's row has.
        get: Its value in a row (of a task or a capability: in that); None where there is none.
        unit: Of its value, empty where it has none.
        better: Which way is better; a search takes what has a way as an objective or a bound.
        needs: What to set, where it is measured on demand only.
        figure: Whether it is a number that is measured, which MLflow gets as a metric.
        text: Prints a value.
        error: The column of its standard error; ``ends``: those of its 95 % interval.
        write: Prints it with what belongs to it, where these do not suffice.
        sort: What a page's rows are sorted by, where that is not its value.
        tables: The tables that show it, with its heading there.
        hover: What it is called where a page tells of a trial that one points at, and its place there.
        csv: Whether ``results.csv`` has it.
        view: Its kind (``metrics``, ``tags``, ``params``) and its place in MLflow's list of runs.
        best: Whether a sweep's own run in MLflow has it of the sweep's best trial.
        by_bits: Whether that run has it as a curve over bits.
    """

    name: str
    meaning: str
    of: Of
    get: Callable[[Any], Any]
    unit: str = ""
    better: Literal["up", "down"] | None = None
    needs: str = ""
    figure: bool = False
    text: Text = plain
    error: str = ""
    ends: tuple[str, str] | None = None
    write: Callable[[Row], str] | None = None
    sort: Callable[[Row], Any] | None = None
    tables: Mapping[Table, str | Shown] = field(default_factory=dict)
    hover: tuple[str, int] | None = None
    csv: bool = False
    view: tuple[str, int] | None = None
    best: bool = False
    by_bits: bool = False

    def shown(self, table: Table) -> Shown | None:
        """How a table shows it; None if it does not."""
        found = self.tables.get(table)
        return Shown(found) if isinstance(found, str) else found

    def cell(self, row: Row, table: Table | None = None, width: int | None = None) -> str:
        """Its text in a row, as a table shows it; ``width`` is that of a terminal."""
        shown = self.shown(table) if table else None
        if shown and shown.narrow and width is not None and width < shown.min_width:
            return shown.narrow(row)
        if shown and shown.cell:
            return shown.cell(row)
        if self.write:
            return self.write(row)
        value = self.get(row)
        if self.error:
            return numbers.with_error(value, self._other(row, self.error))
        span = ""
        if self.ends and not row.record.reference:
            span = numbers.interval(*(self._other(row, end) for end in self.ends))
        return self.text(value) + (f" ({span})" if span else "")

    def _other(self, row: Row, name: str) -> Any:
        return figures(row, self.of).get(name)


TABLE: list[Column] = []


def add(column: Column) -> Column:
    """Put a column into the table. Raises ValueError where there is one of its name."""
    if any(column.name == other.name and column.of == other.of for other in TABLE):
        raise ValueError(f"there is a column {column.name} already")
    TABLE.append(column)
    return column


def of_trial(name: str, meaning: str, **more: Any) -> Column:
    """A column of a record's field."""
    return Column(name, meaning, "trial", lambda row: getattr(row.record, name), **more)


def of_options(name: str, meaning: str, **more: Any) -> Column:
    """A column of one of the quantizer's options."""
    return Column(name, meaning, "trial", lambda row: row.record.options.get(name), **more)


def of_artifact(name: str, meaning: str, **more: Any) -> Column:
    """A column of a field of :class:`~qsweep.results.record.ArtifactFacts`."""
    return Column(
        name, meaning, "artifact", lambda row: getattr(row.record.artifact, name, None), **more
    )


def of_measurement(name: str, meaning: str, **more: Any) -> Column:
    """A figure that every measurement has, by its name among the ``metrics``."""
    more = {"figure": True, **more}
    return Column(
        name,
        meaning,
        "measurement",
        lambda row: row.measurement.metrics.get(name) if row.measurement else None,
        **more,
    )


def of_speed(name: str, meaning: str, **more: Any) -> Column:
    """A figure of a timing on the serving kernel, by its name there."""
    more = {"figure": True, **more}
    return Column(
        name,
        meaning,
        "speed",
        lambda row: row.record.speed.figures.get(name) if row.record.speed else None,
        **more,
    )


def of_result(of: Of, name: str, meaning: str, **more: Any) -> Column:
    """A figure of a task or of a capability."""
    return Column(name, meaning, of, lambda result: getattr(result, name), figure=True, **more)


def figures(row: Row, of: str) -> Mapping[str, Any]:
    """The figures of a row's measurement or of its timing."""
    if of == "speed":
        return row.record.speed.figures if row.record.speed else {}
    return row.measurement.metrics if row.measurement else {}
