import copy
import threading
import time
import weakref

import pytest
import torch

from qsweep.quantizers.native.lockstep import in_lockstep


def test_questions_of_a_round_are_answered_together():
    rounds = []

    def answer(questions):
        rounds.append(list(questions))
        time.sleep(0.05)
        return [question * 10 for question in questions]

    def walk(start):
        return lambda ask: [ask(start), ask(start + 1)]

    results, seconds = in_lockstep([walk(1), walk(5), walk(7)], answer)
    assert rounds == [[1, 5, 7], [2, 6, 8]]
    assert results == [[10, 20], [50, 60], [70, 80]]
    assert len(seconds) == 3
    # Answering is nobody's own time.
    assert 0 < sum(seconds) < 0.05


def test_all_of_it_runs_in_the_thread_that_called():
    # Each thread that computes has a pool of workers of its own, which are too many for the cores.
    seen = []

    def walk(ask):
        seen.append(threading.get_ident())
        ask(1)

    def answer(questions):
        seen.append(threading.get_ident())
        return questions

    in_lockstep([walk] * 3, answer)
    assert seen == [threading.get_ident()] * 4


def test_questions_may_be_asked_from_deep_inside_a_model():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))

    def walk(factor):
        def run(ask):
            mine = copy.deepcopy(model)
            mine[1].register_forward_pre_hook(lambda _, inputs: (ask(inputs[0]) * factor,))
            return mine(torch.ones(2, 4))

        return run

    with torch.no_grad():
        results, _ = in_lockstep([walk(1), walk(2)], lambda given: [2 * one for one in given])
        first = model[0](torch.ones(2, 4))
        assert torch.equal(results[0], model[1](2 * first))
        assert torch.equal(results[1], model[1](4 * first))


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
            unwound.append(True)

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


def test_who_has_not_begun_when_another_fails_never_begins():
    def bad(ask):
        raise ValueError("no")

    begun = []
    with pytest.raises(ValueError, match="no"):
        in_lockstep([bad, begun.append], lambda questions: questions)
    assert begun == []


def test_neither_questions_nor_answers_are_held_longer_than_they_are_wanted():
    alive = weakref.WeakSet()
    most = []

    class Large:
        def __init__(self):
            alive.add(self)

    def walk(ask):
        for _ in range(3):
            ask(Large())
            most.append(len(alive))

    def answer(questions):
        return [Large() for _ in questions]

    in_lockstep([walk, walk], answer)
    # The first to go on sees the other's question and answer; the last one nothing.
    assert max(most) <= 2
    assert most[1::2] == [1, 1, 0]


def test_as_many_answers_as_questions():
    with pytest.raises(ValueError, match="1 answers to 2 questions"):
        in_lockstep([lambda ask: ask(1)] * 2, lambda questions: [0])
