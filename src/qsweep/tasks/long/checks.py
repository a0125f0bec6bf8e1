"""What an answer states step by step, and how far it is right. Pure."""

import re
from collections.abc import Callable, Sequence

State = tuple[int, ...]

THINKS = "<think>"
"""Opens what a model thinks; ``</think>`` closes it."""

# The last result of a line of sums, perhaps emphasized, and what stands behind a line's last colon.
_RESULT = re.compile(r".*=[\s*$]*(-?\d+)\b(?!\.\d)")
_LIST = re.compile(r".*:[\s\[(*]*(\d+(?:[\s,]+\d+)*)")


def stated_totals(text: str) -> list[State]:
    """The results that an answer states, one for each line with an equals sign."""
    found = [_RESULT.match(line) for line in _answer(text).splitlines()]
    return [(int(match[1]),) for match in found if match]


def stated_lists(text: str) -> list[State]:
    """The lists that an answer states, one for each line with numbers behind a colon."""
    found = [_LIST.match(line) for line in _answer(text).splitlines()]
    return [tuple(map(int, re.findall(r"\d+", match[1]))) for match in found if match]


def steps_right(stated: Sequence[State], expected: Sequence[State]) -> int:
    """How many steps are right before the first that is not.

    What follows a wrong step is no measure of anything: it may be right by luck only.
    """
    for number, (own, right) in enumerate(zip(stated, expected, strict=False)):
        if own != right:
            return number
    return min(len(stated), len(expected))


def _answer(text: str) -> str:
    # What a model thinks before it answers is no answer, and all that there is if it was cut off there.
    said = text.rpartition("</think>")[2]
    return "" if THINKS in said else said


Read = Callable[[str], list[State]]
