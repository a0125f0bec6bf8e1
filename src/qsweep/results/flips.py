"""Answers that went from right to wrong or back, which a score nets against each other. Pure."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from qsweep.base import numbers
from qsweep.evaluate.draws import from_intervals
from qsweep.results.record import BesideReference, Number, Record
from qsweep.tasks.significance import wilson

HEADINGS = ("task", "trial", "answers", "right to wrong", "wrong to right", "flips (95 %)",
            "net (95 %)", "other choice (95 %)")  # fmt: skip
_COUNTS = ("lost", "gained", "answers")
MEANING = (
    "*Flips* are all answers that are right where the reference's is wrong or wrong where it is right "
    "(arXiv 2407.09141); *net* is what is left of them in the score. *Other choice* counts those from "
    "one wrong choice to another, too."
)


@dataclass(frozen=True)
class Flips:
    """Of so many right or wrong answers those that the reference alone, and the trial alone, has right.

    ``known`` is the interval of :attr:`flips` where it covers more than the answers: the draws, too.
    """

    lost: Number
    gained: Number
    answers: Number
    known: tuple[Number, Number] | None = None

    @property
    def flips(self) -> float:
        """The share of all answers that flipped."""
        return (self.lost + self.gained) / self.answers

    @property
    def ends(self) -> tuple[float, float]:
        """The 95 % interval of that share, Wilson's where no other is known."""
        if self.known is not None:
            return self.known
        found = wilson(self.flips, int(self.answers))
        return found.low, found.high


def all_flips(record: Record) -> Flips | None:
    """Over all tasks of a trial with right and wrong answers; None of the reference, or without any.

    Of several draws it is their mean, with an interval that covers them.
    """
    if record.reference:
        return None
    names = {task.name for task in record.tasks or ()}
    found = [_over_tasks(one, names) for one in record.draws or (record,)]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    if len(known) == 1:
        return known[0]
    ends = from_intervals([one.flips for one in known], [one.ends for one in known], (0.0, 1.0))
    lost, gained, answers = (fmean(getattr(one, n) for one in known) for n in _COUNTS)
    return Flips(lost, gained, answers, ends)


def of(result: BesideReference) -> Flips | None:
    """Of one task or capability."""
    if result.lost is None or result.gained is None or not result.samples:
        return None
    low, high = result.flips_low, result.flips_high
    known = None if low is None or high is None else (low, high)
    return Flips(result.lost, result.gained, result.samples, known)


def flips_lines(named: Iterable[tuple[str, Record]]) -> list[list[str]]:
    """A line of :data:`HEADINGS` for each task of each trial, which is given with its name."""
    lines = [line for name, record in named for line in _lines(name, record)]
    return sorted(lines, key=lambda line: line[0])


def flips_markdown(records: Sequence[Record], table: Callable[..., str]) -> str:
    """A section of ``capabilities.md``; empty where no answers can flip."""
    lines = flips_lines((record.name, record) for record in records)
    return f"## Answers that changed\n\n{MEANING}\n\n{table(HEADINGS, lines)}" if lines else ""


def share(value: Number | None, low: Number | None, high: Number | None) -> str:
    """A share with its interval in per cent: ``12.3% (8.1 to 17.9)``."""
    if value is None:
        return ""
    span = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    return numbers.percent(value) + span


def _over_tasks(record: Record, names: Collection[str]) -> Flips | None:
    tasks = [task for task in record.tasks or () if task.name in names]
    found = [one for task in tasks if (one := of(task))]
    return Flips(*(sum(getattr(one, n) for one in found) for n in _COUNTS)) if found else None


def _count(value: Number) -> str:
    return numbers.fixed(value, 0 if value == int(value) else 1)


def _lines(name: str, record: Record) -> Iterator[list[str]]:
    for task in () if record.reference else record.tasks or ():
        if (found := of(task)) is not None:
            yield [
                *(task.name, name, *map(_count, (found.answers, found.lost, found.gained))),
                share(found.flips, *found.ends),
                share(task.difference, task.difference_low, task.difference_high),
                share(task.changed, task.changed_low, task.changed_high),
            ]
