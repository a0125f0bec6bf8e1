"""The embedded suite's items."""

import re

import pytest

from qsweep.tasks.embedded import NAMES, embedded_task
from qsweep.tasks.task import CAPABILITIES, TaskOptions, TaskUnavailable

CHOICES = [n for n in NAMES if n not in ("humaneval", "instructions")]


def items(name):
    try:
        return embedded_task(name, TaskOptions()).load()
    except TaskUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", NAMES)
def test_every_task_has_a_hundred_items_none_twice(name):
    _, asked = items(name)
    assert len(asked) >= 100
    assert len({item.id for item in asked}) == len(asked)


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_distinct_hold_the_answer_and_do_not_give_it_away(name):
    examples, asked = items(name)
    places = [0, 0, 0, 0]
    for item in (*examples, *asked):
        assert len(set(item.choices)) == len(item.choices) >= 2
        assert item.choices.count(item.answer) == 1
        places[item.choices.index(item.answer)] += 1
    if len(asked[0].choices) == 4:
        # The right answer stands in every place about equally often.
        assert min(places) > 0.15 * sum(places), places
    assert not {e.id for e in examples} & {i.id for i in asked}


def test_every_capability_is_asked_for():
    assert {embedded_task(n, TaskOptions()).capability for n in NAMES} == set(CAPABILITIES)


def test_items_are_the_same_every_time():
    for name in CHOICES:
        assert items(name)[1] == items(name)[1]


def test_arithmetic_is_right():
    for item in items("arithmetic")[1]:
        left, sign, right, _ = item.prompt.split()
        a, b = int(left), int(right)
        assert int(item.answer) == {"+": a + b, "-": a - b, "*": a * b}[sign]


def test_syllogisms_are_true_as_often_as_false():
    answers = [item.answer for item in items("syllogism")[1]]
    assert abs(answers.count("true") - answers.count("false")) <= 1


def test_sequences_go_on_as_they_say():
    for item in items("sequences")[1]:
        shown = [word.strip() for word in item.prompt.rstrip(",").split(",")]
        if shown[0].isdigit():
            numbers = [*map(int, shown), int(item.answer)]
            steps = {b - a for a, b in zip(numbers, numbers[1:], strict=False)}
            factors = {b / a for a, b in zip(numbers, numbers[1:], strict=False)}
            assert len(steps) == 1 or factors == {2.0}
        else:
            period = len(set(shown))
            assert item.answer == shown[len(shown) % period]


def test_instructions_accept_their_answer_and_little_else():
    _, asked = items("instructions")
    for item in asked:
        assert re.search(item.pattern, f" {item.answer}")
        assert not re.search(item.pattern, " I do not know")
        assert not re.search(item.pattern, "")


def test_cloze_continues_the_text_that_it_was_cut_from():
    from qsweep.models.tiny.text import documents

    texts = documents("code", "test")
    for item in items("code_cloze")[1][:20]:
        assert any(item.prompt + item.answer in text for text in texts)
