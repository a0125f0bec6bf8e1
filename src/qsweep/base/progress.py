"""How far a step is: the callback that long work reports to."""

from collections.abc import Callable

# Called with the name of the step and the share of it that is done, 0 to 1, or None if unknown.
Progress = Callable[[str, float | None], None]


def silent(step: str, done: float | None = None) -> None:
    """Report progress to nobody."""
