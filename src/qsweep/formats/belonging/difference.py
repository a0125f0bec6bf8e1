"""A way in which an artifact is not the model's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """One thing that differs.

    Attributes:
        line: What, as "24 layers instead of 28": the artifact's first, then the model's.
        refuses: Whether the artifact cannot be measured as one of the model; else it is a note.
    """

    line: str
    refuses: bool = True


def refusal(differences: Iterable[Difference], at_most: int = 3) -> str | None:
    """Those that refuse in one line, the first of them; None if there are none."""
    lines = [one.line for one in differences if one.refuses]
    more = f"; and {len(lines) - at_most} more" if len(lines) > at_most else ""
    return "; ".join(lines[:at_most]) + more if lines else None


def notes(differences: Iterable[Difference]) -> list[str]:
    """Those that are only said."""
    return [one.line for one in differences if not one.refuses]


def as_notes(differences: Sequence[Difference]) -> list[Difference]:
    """The same, none of which refuses."""
    return [Difference(one.line, refuses=False) for one in differences]
