"""The table at the end of a sweep, in the terminal."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base import numbers
from qsweep.base.files import shown
from qsweep.results import own_run
from qsweep.results.answers import best_lines
from qsweep.results.capabilities import adjusted_p, has_tasks, missing_tasks, worst_cell
from qsweep.results.checks import check
from qsweep.results.columns.column import Column
from qsweep.results.columns.table import DECODE_TPS, EXPECTED_LOW, LABEL, SUFFERS, TIME, VERDICT
from qsweep.results.columns.views import columns_of
from qsweep.results.draws import pooled, singles
from qsweep.results.labels import with_distinct_names
from qsweep.results.model_names import dequantized_references
from qsweep.results.record import Record, Row
from qsweep.results.rows import counts, places, ranked
from qsweep.results.ties import notes, with_standings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# Where the output is no terminal, its reader has room for every column.
_PLAIN_WIDTH = 110
_COLOURS = {
    "yes": "green",
    "usually": "green",
    "marginal": "yellow",
    "problematic": "red",
    "failed": "bold red",
    "skipped": "dim",
    "reference": "cyan",
}


def print_results(
    records: Sequence[Record], directory: Path, console: "Console | None" = None
) -> None:
    """Print a sweep's end table, then what did not run and why, what looks wrong, and the counts.

    Colours and lines appear on a terminal only; ``NO_COLOR`` and ``COLUMNS`` are honoured.
    """
    from rich.text import Text

    console, records = console or _console(), with_distinct_names(pooled(records))
    rows = _rows(records)
    if any(record.finished for record in records):
        console.print(_table(rows, console))
    for line in [*map(Text, notes(rows)), *_remarks(records)]:
        console.print(line, soft_wrap=True)
    console.print(_summary(records, directory), soft_wrap=True)


def columns(rows: Sequence[Row], width: int) -> list[Column]:
    """The columns that fit a terminal of so many characters and have something to say.

    Where speed was measured, it comes before the time that the trial itself took.
    """
    records = [row.record for row in rows]
    timed = any(record.speed for record in records)
    empty = {
        DECODE_TPS: not timed,
        SUFFERS: not has_tasks(records),
        EXPECTED_LOW: not _all_expected(records),
        TIME: timed and width < 118,
    }
    found = []
    for column in columns_of("terminal", rows):
        shown = column.shown("terminal")
        fits = shown is not None and (width >= shown.min_width or shown.narrow is not None)
        if fits and not empty.get(column):
            found.append(column)
    return found


def _rows(records: Sequence[Record]) -> list[Row]:
    """A row for each trial, best first, with where it may stand."""
    adjusted = adjusted_p(records)
    models = sorted({record.model for record in records})
    return with_standings(
        [
            Row(r, r.primary, _short_name(r, models), suffers=worst_cell(r, adjusted))
            for r in ranked(records)
        ]
    )


def _table(rows: Sequence[Row], console: "Console") -> Any:
    from rich import box
    from rich.table import Table

    shown = columns(rows, console.width)
    records = [row.record for row in rows]
    measured = places(records)
    title = ", ".join(sorted({record.model for record in records}))
    if measured:
        title += f" on {measured[0][0]} (preset {measured[0][1]})"
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold" if console.is_terminal else "",
        box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1) if console.is_terminal else (0, 0),
        collapse_padding=True,
    )
    for column in shown:
        heading = column.shown("terminal")
        table.add_column(
            "" if heading is None else heading.heading,
            justify="left" if column in (LABEL, VERDICT) else "right",
            no_wrap=column is not LABEL,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(_styled(c.cell(row, "terminal", console.width)) for c in shown))
    return table


def _short_name(record: Record, models: Sequence[str]) -> str:
    # The title names the model; only a sweep over several repeats it in every row.
    return record.name.removeprefix(f"{record.model} ") if len(models) == 1 else record.name


def _remarks(records: Sequence[Record]) -> list["Text"]:
    from rich.text import Text

    lines = [Text(line) for line in dequantized_references(records)]
    for record in ranked(records):
        if not record.finished:
            reason = numbers.one_line(record.reason or "no reason recorded")
            line = _styled(record.status)
            lines.append(line.append(f": {record.name}: {reason}", style="not bold default"))
        elif record.only_own_run:
            lines.append(Text(f"{record.name}: {own_run.sentence(record)}"))
    if others := places(records)[1:]:
        names = ", ".join(f"{corpus} ({preset})" for corpus, preset in others)
        lines.append(Text(f"also measured, see results.md: {names}"))
    lines += [Text(f"task not run: {line}") for line in missing_tasks(records)]
    lines += [Text(f"check: {line}", style="yellow") for line in check(records)]
    return lines


def _summary(records: Sequence[Record], directory: Path) -> "Text":
    from rich.text import Text

    tally = ", ".join(
        f"{number} {status}" for status, number in counts(singles(records)).items() if number
    )
    text = Text(f"{tally or 'no trials'}; results in {shown(directory)}/results.csv and .md")
    for line in best_lines(records):
        text.append(f"\n{line}")
    return text


def _styled(text: str) -> "Text":
    from rich.text import Text

    return Text(text, style=_COLOURS.get(text.removesuffix("?"), ""))


def _all_expected(records: Sequence[Record]) -> bool:
    # A sweep of the field's own rows shows its figures; elsewhere they would be a column of holes.
    quantized = [r for r in records if r.finished and not r.reference]
    return bool(quantized) and all(r.expected_by_name for r in quantized)


def _console() -> "Console":
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=_PLAIN_WIDTH)
    return console
