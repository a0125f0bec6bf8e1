"""The table at the end of a sweep, in the terminal."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base import numbers as cells
from qsweep.base.files import shown
from qsweep.evaluate.verdicts import expected_range, in_the_fields_table
from qsweep.results import own_run
from qsweep.results.answers import best_lines
from qsweep.results.capabilities import adjusted_p, has_tasks, missing_tasks, worst_cell
from qsweep.results.checks import check
from qsweep.results.labels import named_apart
from qsweep.results.record import Record
from qsweep.results.rows import (
    counts,
    only_own_run,
    places,
    primary_metric,
    ranked,
    status_word,
    total_seconds,
)

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


@dataclass(frozen=True)
class Column:
    """A column: its heading, its text, and the narrowest terminal that still shows it."""

    heading: str
    text: Callable[[Record], str]
    min_width: int = 0


def print_results(
    records: Sequence[Record], directory: Path, console: "Console | None" = None
) -> None:
    """Print a sweep's end table, then what did not run and why, what looks wrong, and the counts.

    Colours and lines appear on a terminal only; ``NO_COLOR`` and ``COLUMNS`` are honoured.
    """
    console, records = console or _console(), named_apart(records)
    if any(record["status"] == "finished" for record in records):
        console.print(_table(records, console))
    for line in _remarks(records):
        console.print(line, soft_wrap=True)
    console.print(_summary(records, directory), soft_wrap=True)


def columns(width: int, timed: bool = False) -> list[Column]:
    """The columns that fit a terminal of so many characters.

    Where speed was measured, it comes before the time that the trial itself took.
    """
    everything = [
        Column("trial", lambda r: r["name"]),
        Column("bpw", lambda r: cells.fixed(_artifact(r, "bpw"), 2)),
        Column("GB", lambda r: cells.gigabytes(_artifact(r, "size_gb"))),
        Column("ppl", _perplexity(width >= 100)),
        Column("ratio", lambda r: cells.ratio(primary_metric(r, "ppl_ratio"))),
        Column("95 %", _interval, min_width=100),
        Column("expected", lambda r: cells.expected(expected_range(r)), min_width=100),
        Column("KLD", lambda r: cells.divergence(primary_metric(r, "kld"))),
        Column("top-1", lambda r: cells.percent(primary_metric(r, "top1_agreement"))),
        Column("q/GB", lambda r: cells.significant(primary_metric(r, "quality_per_gb"), 3), 110),
        Column("suffers most", lambda r: r.get("suffers", "")),
        Column("verdict", status_word),
        Column("tok/s", _decode_speed, min_width=90),
        Column("time", lambda r: cells.seconds(total_seconds(r)), min_width=118 if timed else 90),
    ]
    return [column for column in everything if width >= column.min_width]


def _table(records: Sequence[Record], console: "Console") -> Any:
    from rich import box
    from rich.table import Table

    timed = any(record.get("speed") for record in records)
    shown = [c for c in columns(console.width, timed) if timed or c.heading != "tok/s"]
    shown = [c for c in shown if has_tasks(records) or c.heading != "suffers most"]
    shown = [c for c in shown if _all_expected(records) or c.heading != "expected"]
    adjusted = adjusted_p(records)
    measured = places(records)
    models = sorted({record["model"] for record in records})
    title = ", ".join(models)
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
        first, last = column.heading == "trial", column.heading == "verdict"
        table.add_column(
            column.heading,
            justify="left" if first or last else "right",
            no_wrap=not first,
            overflow="fold",
        )
    for record in ranked(records):
        named = {
            **record,
            "name": _short_name(record, models),
            "suffers": worst_cell(record, adjusted),
        }
        table.add_row(*(_styled(column.text(named)) for column in shown))
    return table


def _short_name(record: Record, models: Sequence[str]) -> str:
    # The title names the model; only a sweep over several repeats it in every row.
    name = str(record["name"])
    return name.removeprefix(f"{record['model']} ") if len(models) == 1 else name


def _remarks(records: Sequence[Record]) -> list["Text"]:
    from rich.text import Text

    lines = []
    for record in ranked(records):
        if record["status"] != "finished":
            reason = cells.one_line(record.get("reason") or "no reason recorded")
            line = _styled(record["status"])
            lines.append(line.append(f": {record['name']}: {reason}", style="not bold default"))
        elif only_own_run(record):
            lines.append(Text(f"{record['name']}: {own_run.sentence(record)}"))
    if others := places(records)[1:]:
        names = ", ".join(f"{corpus} ({preset})" for corpus, preset in others)
        lines.append(Text(f"also measured, see results.md: {names}"))
    lines += [Text(f"task not run: {line}") for line in missing_tasks(records)]
    lines += [Text(f"check: {line}", style="yellow") for line in check(records)]
    return lines


def _summary(records: Sequence[Record], directory: Path) -> "Text":
    from rich.text import Text

    said = ", ".join(f"{number} {status}" for status, number in counts(records).items() if number)
    text = Text(f"{said or 'no trials'}; results in {shown(directory)}/results.csv and .md")
    for line in best_lines(records):
        text.append(f"\n{line}")
    return text


def _styled(text: str) -> "Text":
    from rich.text import Text

    return Text(text, style=_COLOURS.get(text.removesuffix("?"), ""))


def _perplexity(with_error: bool) -> Callable[[Record], str]:
    def text(record: Record) -> str:
        error = primary_metric(record, "ppl_stderr") if with_error else None
        return cells.with_error(primary_metric(record, "ppl"), error)

    return text


def _interval(record: Record) -> str:
    low, high = (primary_metric(record, f"ppl_ratio_{end}") for end in ("low", "high"))
    return "" if record.get("reference") else cells.interval(low, high)


def _all_expected(records: Sequence[Record]) -> bool:
    # A sweep of the field's own rows shows its figures; elsewhere they would be a column of holes.
    quantized = [r for r in records if r["status"] == "finished" and not r.get("reference")]
    return bool(quantized) and all(map(in_the_fields_table, quantized))


def _decode_speed(record: Record) -> str:
    return cells.significant((record.get("speed") or {}).get("decode_tps"), 3)


def _artifact(record: Record, name: str) -> float | None:
    return (record.get("artifact") or {}).get(name)


def _console() -> "Console":
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=_PLAIN_WIDTH)
    return console
