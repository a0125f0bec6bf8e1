"""What long answers suffered, in words and numbers. Pure."""

from collections.abc import Sequence
from typing import Any

from qsweep.base import numbers
from qsweep.results.record import Record, Row
from qsweep.tasks.long.compare import LongFigures
from qsweep.tasks.long.loops import LEAST, PERIOD, TIMES

_INTRODUCTION = (
    "Length: tokens of a sampled answer, beside the reference's, with a paired 95 % interval over the "
    "problems and their samples. Truncated: the share of samples that ran into the most tokens that "
    f"were allowed. Loops: the share whose last tokens are a pattern of at most {PERIOD} tokens, at "
    f"least {TIMES} times and over at least {LEAST} tokens. Parts at: the token by which half of "
    "the greedy answers have departed from the reference's (Kaplan-Meier, with its 95 % interval; > n: "
    "fewer than half had, and answers were compared up to token n)."
)


def ratio_cell(row: Row) -> str:
    """``1.31 (1.12-1.54)``: how much longer answers are than the reference's."""
    return "" if row.record.long is None else _ratio(row.record, row.record.long)


def divergence_cell(row: Row) -> str:
    """``37 (21-60)``: where half of the greedy answers have departed; ``> 180`` where fewer have."""
    return "" if row.record.long is None else _parts(row.record, row.record.long)


def long_markdown(records: Sequence[Record]) -> str:
    """A section of ``capabilities.md``; empty where no trial gave long answers."""
    from qsweep.results.markdown_table import table

    lines = [
        [task.name, record.name, *_cells(record, task.long, task.facts or {})]
        for record in records
        for task in record.tasks or ()
        if task.long is not None
    ]
    if not lines:
        return ""
    headings = ["task", "trial", "tokens", "length", "truncated", "loops", "parts at", "solved"]
    lines.sort(key=lambda line: line[0])
    return f"## Long answers\n\n{_INTRODUCTION}\n\n" + table(headings, lines)


def _cells(record: Record, found: LongFigures, facts: Any) -> list[str]:
    return [
        numbers.fixed(found.length, 0),
        _ratio(record, found),
        numbers.percent(found.truncated),
        numbers.percent(found.loops),
        _parts(record, found),
        numbers.percent(facts.get("solved")),
    ]


def _ratio(record: Record, found: LongFigures) -> str:
    span = numbers.interval(found.length_ratio_low, found.length_ratio_high)
    return numbers.ratio(found.length_ratio) + ("" if record.reference else f" ({span})")


def _parts(record: Record, found: LongFigures) -> str:
    if record.reference:
        return ""
    low, high = found.divergence_token_low, found.divergence_token_high
    end = f"-{high}" if high is not None else f" to > {found.longest}"
    span = f" ({low}{end})" if low is not None else ""
    if found.divergence_token is None:
        return f"> {found.longest}{span}"
    return f"{found.divergence_token}{span}"
