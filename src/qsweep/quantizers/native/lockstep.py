"""Functions that go on side by side, and meet where a question is cheaper to answer for all at once.

Every configuration of a grid walks a decoder layer with weights of its own, and needs an answer
(its quantized weights) in the middle of it, deep inside the model's code. A greenlet can wait there
while the others catch up. All of them run in the thread that called: with a thread for each, OpenMP
would keep a pool of workers for each, and more workers than cores make it put them to sleep after
every operation, which costs more than small operations themselves do.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
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
            walker.resume()
        while waiting := [walker for walker in walkers if not walker.done]:
            answers = list(answer([walker.output for walker in waiting]))
            if len(answers) != len(waiting):
                raise ValueError(f"{len(answers)} answers to {len(waiting)} questions")
            # They are large: nothing holds one but who asked for it.
            for walker in waiting:
                walker.answer = answers.pop(0)
                walker.resume()
    finally:
        for walker in walkers:
            walker.abandon()
    return [walker.output for walker in walkers], [walker.seconds for walker in walkers]


class _Walker:
    """A function in a greenlet.

    ``output`` is its last question, or its result once it is done; ``answer`` what it is to get for it.
    """

    def __init__(self, function: Callable[..., Any]):
        self.output: Any = None
        self.answer: Any = None
        self.seconds = 0.0
        self._greenlet = greenlet(partial(function, self._ask))

    @property
    def done(self) -> bool:
        return bool(self._greenlet.dead)

    def resume(self) -> None:
        """Until it asks again or returns."""
        started = time.perf_counter()
        self.output = None
        self.output = self._greenlet.switch()
        self.seconds += time.perf_counter() - started

    def _ask(self, question: Any) -> Any:
        self._greenlet.parent.switch(question)
        answer, self.answer = self.answer, None
        return answer

    def abandon(self) -> None:
        """Unwind it, where it is not done."""
        if not self.done:
            self._greenlet.throw(GreenletExit)
