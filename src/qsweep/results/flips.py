"""Answers that went from right to wrong or back, which a score nets against each other. Pure."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from qsweep.base import numbers
from qsweep.results.record import BesideReference, Number, Record
from qsweep.tasks.significance import wilson

HEADINGS = ("task", "trial", "answers", "right to wrong", "wrong to right", "flips (95 %)",
            "net (95 %)", "other choice (95 %)")  # fmt: skip
MEANING = (
    "*Flips* are all answers that are right where the reference's is wrong or wrong where it is right "
    "(arXiv 2407.09141); *net* is what is left of them in the score. *Other choice* counts those from "
    "one wrong choice to another, too."
)


@dataclass(frozen=True)
class Flips:
    """Of so many right or wrong answers those that the reference alone, and the trial alone, has right."""

    lost: int
    gained: int
    answers: int

    @property
    def flips(self) -> float:
        """The share of all answers that flipped."""
        return (self.lost + self.gained) / self.answers

    @property
    def ends(self) -> tuple[float, float]:
        """Wilson's 95 % interval of that share."""
        found = wilson(self.flips, self.answers)
        return found.low, found.high


def all_flips(record: Record) -> Flips | None:
    """Over all tasks of a trial with right and wrong answers; None of the reference, or without any."""
    found = [] if record.reference else [one for task in record.tasks or () if (one := of(task))]
    if not found:
        return None
    return Flips(*(sum(getattr(one, n) for one in found) for n in ("lost", "gained", "answers")))


def of(result: BesideReference) -> Flips | None:
    """Of one task or capability."""
    if result.lost is None or result.gained is None or not result.samples:
        return None
    return Flips(result.lost, result.gained, result.samples)


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


def _lines(name: str, record: Record) -> Iterator[list[str]]:
    for task in () if record.reference else record.tasks or ():
        if (found := of(task)) is not None:
            yield [
                *(task.name, name, str(found.answers), str(found.lost), str(found.gained)),
                share(found.flips, *found.ends),
                share(task.difference, task.difference_low, task.difference_high),
                share(task.changed, task.changed_low, task.changed_high),
            ]
