"""Problems whose answers are as long as one wants: each step is a line that a program can check. Pure.

A step is easy; what is asked is to go on without an error for so many of them.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

# Results of a running total: small ones, so that each step is one that a small model knows.
_LARGEST = 99
# How long the list of the other kind may become, and how short.
_SHORTEST, _LONGEST = 3, 6


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        prompt: What is asked, in one line.
        lines: The right answer, a line for each step.
        states: What is right after each step, as :mod:`qsweep.tasks.long.checks` reads it.
    """

    prompt: str
    lines: tuple[str, ...]
    states: tuple[tuple[int, ...], ...]

    @property
    def answer(self) -> str:
        """The right answer as text."""
        return "\n".join(self.lines)

    @property
    def text(self) -> str:
        """Problem and answer, as an example shows them."""
        return f"{self.prompt}\n{self.answer}"


def totals(rng: random.Random, steps: int) -> Problem:
    """A running total: numbers from 1 to 9 are added and taken away, and it stays below 100."""
    start = total = rng.randint(10, 90)
    asked, lines, states = [], [], []
    for _ in range(steps):
        number = rng.randint(1, 9)
        up = total < number or (total + number <= _LARGEST and rng.random() < 0.5)
        after = total + number if up else total - number
        asked.append(f"{'+' if up else '-'} {number}")
        lines.append(f"{total} {asked[-1]} = {after}")
        states.append((after,))
        total = after
    return Problem(f"Start at {start}. Then: {', '.join(asked)}", tuple(lines), tuple(states))


def lists(rng: random.Random, steps: int) -> Problem:
    """Operations on a short list of digits; the list after each is to be written down."""
    state = tuple(rng.sample(range(1, 10), 4))
    start = before = state
    asked, lines, states = [], [], []
    for _ in range(steps):
        # Digits that are all different: then every operation changes something.
        digit = rng.choice([n for n in range(1, 10) if n not in state])
        fair = [
            name
            for name, change in _CHANGES.items()
            # One that undoes the last would turn in circles.
            if _SHORTEST <= len(after := change(state, digit)) <= _LONGEST and after != before
        ]
        name = rng.choice(fair)
        before, state = state, _CHANGES[name](state, digit)
        asked.append(name.format(digit))
        lines.append(f"{asked[-1]}: {' '.join(map(str, state))}")
        states.append(state)
    shown = " ".join(map(str, start))
    return Problem(f"List: {shown}. Then: {', '.join(asked)}", tuple(lines), tuple(states))


def problems(make: "Make", count: int, steps: int, seed: str) -> list[Problem]:
    """So many different problems of so many steps."""
    rng = random.Random(f"{seed} {steps}")  # noqa: S311 - not for cryptography
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = make(rng, steps)
        found.setdefault(problem.prompt, problem)
    return list(found.values())


Make = Callable[[random.Random, int], Problem]
_Change = Callable[[tuple[int, ...], int], tuple[int, ...]]
_CHANGES: dict[str, _Change] = {
    "reverse": lambda state, _: state[::-1],
    "first to end": lambda state, _: (*state[1:], state[0]),
    "last to front": lambda state, _: (state[-1], *state[:-1]),
    "drop first": lambda state, _: state[1:],
    "drop last": lambda state, _: state[:-1],
    "append {}": lambda state, digit: (*state, digit),
}
