"""Problems as long as one wants, what an answer states of them, and whether it turns in circles."""

import random

import pytest

from qsweep.tasks.long.checks import stated_lists, stated_totals, steps_right
from qsweep.tasks.long.loops import LEAST, PERIOD, TIMES, ends_in_loop
from qsweep.tasks.long.problems import lists, problems, totals

READ = {totals: stated_totals, lists: stated_lists}


@pytest.mark.parametrize("make", [totals, lists])
@pytest.mark.parametrize("steps", [1, 4, 16, 300])
def test_the_right_answer_is_found_right(make, steps):
    for problem in problems(make, 8, steps, "s"):
        assert len(problem.lines) == len(problem.states) == steps
        assert READ[make](problem.answer) == list(problem.states)


def test_a_total_follows_from_the_one_before():
    for problem in problems(totals, 20, 30, "s"):
        first, _, asked = problem.prompt.removeprefix("Start at ").partition(". Then: ")
        total = int(first)
        for step, line, (state,) in zip(
            asked.split(", "), problem.lines, problem.states, strict=True
        ):
            sign, number = step.split()
            assert line == f"{total} {step} = {state}"
            total += int(number) if sign == "+" else -int(number)
            assert total == state and 0 <= total <= 99


def test_a_list_follows_from_the_one_before():
    change = {
        "reverse": lambda s: s[::-1],
        "first to end": lambda s: s[1:] + s[:1],
        "last to front": lambda s: s[-1:] + s[:-1],
        "drop first": lambda s: s[1:],
        "drop last": lambda s: s[:-1],
    }
    for problem in problems(lists, 20, 30, "s"):
        first, _, asked = problem.prompt.removeprefix("List: ").partition(". Then: ")
        before = earlier = [int(n) for n in first.split()]
        for step, state in zip(asked.split(", "), problem.states, strict=True):
            word, _, digit = step.rpartition(" ")
            after = [*before, int(digit)] if word == "append" else change[step](before)
            assert tuple(after) == state and 3 <= len(after) <= 6
            assert after not in (before, earlier)  # every step asks for something, none is undone
            earlier, before = before, after


def test_problems_are_the_same_every_time_and_other_ones_by_length():
    assert problems(totals, 5, 8, "s") == problems(totals, 5, 8, "s")
    assert len({p.prompt for p in problems(lists, 50, 2, "s")}) == 50
    assert problems(totals, 5, 8, "s")[0].prompt != problems(totals, 5, 8, "t")[0].prompt
    assert isinstance(totals(random.Random(0), 3).states[0], tuple)


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("3 + 4 = 7\n7 - 2 = 5", [(7,), (5,)]),
        ("Step 1: 3 + 4 = **7**\n- 7 - 2 = 5.", [(7,), (5,)]),  # emphasis
        ("3 + 4 = 7 - 2 = 5", [(5,)]),  # a line has one result: its last
        ("<think>1 + 1 = 3\n</think>3 + 4 = 7", [(7,)]),
        ("<think>1 + 1 = 2\n3 + 4 = 7", []),  # cut off before it said anything
        ("<think>1 + 1 = 3\n</think>3 + 4 = 7\n<think>7 + 1 = 8", []),
        ("52 + 3 = $55$\n52 + 3 = ** 55 **", [(55,), (55,)]),
        ("109 / 2 = 54.5\n27 * 2 = 54.", [(54,)]),
        ("the total is 7", []),
        ("1 - 3 = -2", [(-2,)]),
        ("", []),
    ],
)
def test_totals_that_are_stated(text, stated):
    assert stated_totals(text) == stated


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("reverse: 2 7 4\ndrop first: 7 4", [(2, 7, 4), (7, 4)]),
        ("append 5: [2, 7, 5]", [(2, 7, 5)]),
        ("Here is the list: none", []),
        ("1. reverse: 2 7 4", [(2, 7, 4)]),
        ("reverse 2 7 4", []),
    ],
)
def test_lists_that_are_stated(text, stated):
    assert stated_lists(text) == stated


@pytest.mark.parametrize(
    ("stated", "right"),
    [
        ([(1,), (2,), (3,)], 3),
        ([(1,), (2,), (3,), (9,)], 3),  # what comes after the last step is nobody's business
        ([(1,), (9,), (3,)], 1),  # right again by luck
        ([(1,)], 1),
        ([(2,), (3,)], 0),
        ([], 0),
    ],
)
def test_steps_count_up_to_the_first_that_is_wrong(stated, right):
    assert steps_right(stated, [(1,), (2,), (3,)]) == right


# Loops.


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([1, 2, 3] * 20, True),
        ([*range(100, 150), *[7] * LEAST], True),  # one token, often enough
        ([*range(100, 150), *[7] * (LEAST - 1)], False),
        (list(range(PERIOD)) * TIMES, True),  # the longest pattern, as often as it takes
        (list(range(PERIOD)) * (TIMES - 1), False),
        (list(range(PERIOD + 1)) * (TIMES + 2), False),  # a longer one is not looked for
        ([1, 2, 3] * 20 + [4], False),  # it came out of it
        ([4, 5, *[1, 2, 3] * 20, 1, 2], True),  # cut within a round
        (list(range(200)), False),
        ([token for n in range(40) for token in (1, n, 2)], False),  # a counter
        ([], False),
    ],
)
def test_a_loop_is_a_pattern_over_and_over_at_the_end(tokens, loops):
    assert ends_in_loop(tokens) is loops


def test_bounds_of_a_loop_are_what_they_say():
    assert ends_in_loop([1, 2] * 3, period=2, times=3, least=1)
    assert not ends_in_loop([1, 2] * 3, period=1, times=3, least=1)
    assert not ends_in_loop([1, 2] * 3, period=2, times=4, least=1)
    assert not ends_in_loop([1, 2] * 3, period=2, times=3, least=7)


@pytest.mark.parametrize("make", [totals, lists])
def test_no_right_answer_is_a_loop(make, pocket_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pocket_dir)
    for problem in problems(make, 40, 60, "s"):
        assert not ends_in_loop(tokenizer.encode(problem.answer))
