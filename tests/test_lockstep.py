import threading

import pytest

from qsweep.quantizers.native.lockstep import in_lockstep


def test_questions_of_a_round_are_answered_together():
    rounds = []

    def answer(questions):
        rounds.append(list(questions))
        return [question * 10 for question in questions]

    def walk(start):
        return lambda ask: [ask(start), ask(start + 1)]

    results, seconds = in_lockstep([walk(1), walk(5), walk(7)], answer)
    assert rounds == [[1, 5, 7], [2, 6, 8]]
    assert results == [[10, 20], [50, 60], [70, 80]]
    assert len(seconds) == 3
    assert all(spent >= 0 for spent in seconds)


def test_only_one_computes_at_any_time():
    busy = threading.Lock()

    def walk(ask):
        for number in range(50):
            assert busy.acquire(blocking=False)
            busy.release()
            ask(number)

    def answer(questions):
        with busy:
            return questions

    in_lockstep([walk] * 8, answer)


def test_who_asks_less_keeps_nobody_waiting():
    def walk(count):
        return lambda ask: [ask(number) for number in range(count)]

    results, _ = in_lockstep([walk(0), walk(3), walk(1)], lambda questions: questions)
    assert results == [[], [0, 1, 2], [0]]


@pytest.mark.parametrize("where", ["walk", "answer"])
def test_the_first_failure_ends_all_of_it(where):
    unwound = []

    def good(ask):
        try:
            ask(1)
            ask(2)
        finally:
            unwound.append(threading.current_thread())

    def bad(ask):
        ask(1)
        if where == "walk":
            raise ValueError("no")
        ask(2)

    asked = []

    def answer(questions):
        asked.append(questions)
        if where == "answer" and len(asked) == 2:
            raise ValueError("no")
        return questions

    with pytest.raises(ValueError, match="no"):
        in_lockstep([good, bad, good], answer)
    assert len(unwound) == 2
    assert not any(thread.is_alive() for thread in unwound)
