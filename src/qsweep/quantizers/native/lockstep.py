"""Functions that go on side by side, and meet where a question is cheaper to answer for all at once.

Every configuration of a grid walks a decoder layer with weights of its own, and needs an answer
(its quantized weights) in the middle of it, deep inside the model's code. A greenlet can wait there
while the others catch up. All of them run in the thread that called: with a thread for each, OpenMP
would keep a pool of workers for each, and more workers than cores make it put them to sleep after
every operation, which costs more than small operations themselves do.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from greenlet import GreenletExit, greenlet

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


def in_lockstep(
    functions: Sequence[Callable[[Callable[[Question], Answer]], Result]],
    answer: Callable[[Sequence[Question]], Sequence[Answer]],
) -> tuple[list[Result], list[float]]:
    """Run functions that ask questions, and answer these for all functions together.

    What belongs to a thread rather than to a function (gradients on or off, autocast) must be the
    same at every question as it is around the call.

    Args:
        functions: Each is given a function to ask with.
        answer: Gives the answers to the questions of all functions that have not returned yet, in
            the functions' order.

    Returns:
        What the functions return, and the seconds that each took, without the answers.

    Raises:
        Exception: the first one that a function or ``answer`` raised; the others are given up.
    """
    walkers = [_Walker(function) for function in functions]
    try:
        for walker in walkers:
            walker.go_on(walker.ask)
        while waiting := [walker for walker in walkers if not walker.done]:
            answers = answer([walker.said for walker in waiting])
            for walker, given in zip(waiting, answers, strict=True):
                walker.go_on(given)
    finally:
        for walker in walkers:
            walker.give_up()
    return [walker.said for walker in walkers], [walker.seconds for walker in walkers]


class _Walker:
    """A function in a greenlet, and what it said last: a question, or its result once it is done."""

    def __init__(self, function: Callable[..., Any]):
        self.said: Any = None
        self.seconds = 0.0
        self._greenlet = greenlet(function)

    @property
    def done(self) -> bool:
        return bool(self._greenlet.dead)

    def go_on(self, given: Any) -> None:
        """With what it waits for, until it asks again or returns."""
        started = time.perf_counter()
        self.said = self._greenlet.switch(given)
        self.seconds += time.perf_counter() - started

    def ask(self, question: Any) -> Any:
        """From inside: wait for the answer."""
        return self._greenlet.parent.switch(question)

    def give_up(self) -> None:
        """Unwind it, where it is not done."""
        if not self.done:
            self._greenlet.throw(GreenletExit)
