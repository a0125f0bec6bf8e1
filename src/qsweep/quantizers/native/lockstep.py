"""Functions that go on side by side, and meet where a question is cheaper to answer for all at once.

Every configuration of a grid walks a decoder layer with weights of its own, and needs an answer
(its quantized weights) in the middle of it, deep inside the model's code. In a thread of its own it
can wait there. Threads serve for waiting alone: only one of them computes at any time.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class _Abandoned(Exception):
    """Another function failed, so that the question will not be answered."""


def in_lockstep(
    functions: Sequence[Callable[[Callable[[Question], Answer]], Result]],
    answer: Callable[[Sequence[Question]], Sequence[Answer]],
) -> tuple[list[Result], list[float]]:
    """Run functions that ask questions, and answer these for all functions together.

    Args:
        functions: Each is given a function to ask with.
        answer: Gives the answers to the questions of all functions that have not returned yet, in
            the functions' order.

    Returns:
        What the functions return, and the seconds that each took, without the answers.

    Raises:
        Exception: the first one that a function or ``answer`` raised; the others are given up.
    """
    meeting = _Meeting(len(functions), answer)
    results: dict[int, Result] = {}

    def run(number: int) -> None:
        meeting.enter(number)
        error: BaseException | None = None
        try:
            results[number] = functions[number](partial(meeting.ask, number))
        except BaseException as caught:
            error = caught
        finally:
            meeting.leave(number, error)

    threads = [
        threading.Thread(target=run, args=(number,), daemon=True)
        for number in range(len(functions))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if meeting.error is not None:
        raise meeting.error
    return [results[number] for number in range(len(functions))], meeting.seconds


class _Meeting(Generic[Question, Answer]):
    def __init__(self, count: int, answer: Callable[[Sequence[Question]], Sequence[Answer]]):
        self.error: BaseException | None = None
        self.seconds = [0.0] * count
        self._since = [0.0] * count
        self._present = set(range(count))
        self._answer = answer
        self._questions: dict[int, Question] = {}
        self._answers: dict[int, Answer] = {}
        # Who holds its lock computes; waiting gives it away.
        self._condition = threading.Condition()

    def enter(self, number: int) -> None:
        self._condition.acquire()
        self._since[number] = time.perf_counter()

    def leave(self, number: int, error: BaseException | None) -> None:
        self._stop_clock(number)
        self._present.discard(number)
        if error is not None and self.error is None:
            self.error = error
        self._answer_if_all_have_asked()
        self._condition.notify_all()
        self._condition.release()

    def ask(self, number: int, question: Question) -> Answer:
        self._stop_clock(number)
        self._questions[number] = question
        self._answer_if_all_have_asked()
        while number not in self._answers and self.error is None:
            self._condition.wait()
        self._since[number] = time.perf_counter()
        if self.error is not None:
            raise _Abandoned
        return self._answers.pop(number)

    def _answer_if_all_have_asked(self) -> None:
        if self.error is not None or not self._present or self._questions.keys() != self._present:
            return
        numbers = sorted(self._questions)
        questions = [self._questions.pop(number) for number in numbers]
        try:
            self._answers = dict(zip(numbers, self._answer(questions), strict=True))
        except BaseException as error:
            self.error = error
        self._condition.notify_all()

    def _stop_clock(self, number: int) -> None:
        self.seconds[number] += time.perf_counter() - self._since[number]
