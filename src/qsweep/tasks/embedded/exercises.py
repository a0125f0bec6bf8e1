"""Arithmetic and simple logic with distractors, in the wording of :mod:`qsweep.models.tiny.exercises`."""

import random

from qsweep.models.tiny.exercises import Exercise, exercises
from qsweep.tasks.embedded.tables import CHOICES, choice_item
from qsweep.tasks.items import Item


def arithmetic(count: int, seed: int) -> list[Item]:
    """Sums, differences and products of small numbers, each against three near misses."""
    rng = random.Random(f"arithmetic {seed}")  # noqa: S311 - not for cryptography
    kinds = ("addition", "subtraction", "multiplication")
    return [_number(e.question, int(e.answer), rng) for e in _drawn(kinds, count, seed)]


def transitive(count: int, seed: int) -> list[Item]:
    """Who is at an end of an order that two sentences give: one of the three persons."""
    rng = random.Random(f"transitive {seed}")  # noqa: S311
    items = []
    for exercise in _drawn(("transitive",), count, seed):
        words = exercise.question.replace(".", " ").split()
        names = list(dict.fromkeys(w for w in words if w[0].isupper() and w not in _NO_NAMES))
        rng.shuffle(names)
        items.append(Item(exercise.question, exercise.answer, tuple(names)))
    return items


def syllogism(count: int, seed: int) -> list[Item]:
    """Whether a trait of a class carries over: true or false, each equally often."""
    found: dict[str, list[Exercise]] = {"true": [], "false": []}
    # Twice the number, so that each answer has its half.
    for exercise in _drawn(("syllogism",), 3 * count, seed):
        found[exercise.answer].append(exercise)
    pairs = zip(found["true"], found["false"], strict=False)
    chosen = [exercise for pair in pairs for exercise in pair][:count]
    return [Item(e.question, e.answer, ("true", "false")) for e in chosen]


def sequences(count: int, seed: int) -> list[Item]:
    """What comes next: even steps, doublings, and patterns that repeat."""
    rng = random.Random(f"sequences {seed}")  # noqa: S311
    found: dict[str, Item] = {}
    while len(found) < count:
        for make in (_even_steps, _doubling, _repetition):
            item = make(rng)
            found.setdefault(item.prompt, item)
    return list(found.values())[:count]


def _even_steps(rng: random.Random) -> Item:
    step = rng.randrange(2, 12)
    first = rng.randrange(1, 40)
    shown = [first + step * i for i in range(5)]
    return _next(shown, shown[-1] + step, rng)


def _doubling(rng: random.Random) -> Item:
    first = rng.randrange(1, 60)
    shown = [first * 2**i for i in range(4)]
    return _next(shown, shown[-1] * 2, rng)


def _repetition(rng: random.Random) -> Item:
    period = rng.choice((2, 3))
    pattern = rng.sample(_WORDS, period)
    length = rng.randrange(2 * period, 3 * period)
    shown = [pattern[i % period] for i in range(length)]
    right = pattern[length % period]
    others = [w for w in pattern if w != right]
    others += rng.sample([w for w in _WORDS if w not in pattern], CHOICES - 1 - len(others))
    return choice_item(", ".join(shown) + ",", right, others, rng)


def _next(shown: list[int], right: int, rng: random.Random) -> Item:
    return _number(", ".join(map(str, shown)) + ",", right, rng)


_WORDS = "red blue green black white yellow cat dog bird fish sun moon star tree stone".split()
_NO_NAMES = {"Who", "Answer:"}


def _drawn(kinds: tuple[str, ...], count: int, seed: int) -> list[Exercise]:
    # Of the test split, none twice; small tables (products) may have fewer than asked for.
    found: dict[str, Exercise] = {}
    for number, exercise in enumerate(exercises("test", seed)):
        if exercise.kind in kinds:
            found.setdefault(exercise.question, exercise)
        if len(found) == count or number > 200 * count:
            break
    return list(found.values())


def _number(prompt: str, right: int, rng: random.Random) -> Item:
    steps = [1, -1, 2, -2, 10, -10, 11, -9, 9, -11]
    rng.shuffle(steps)
    wrong = [right + step for step in steps if right + step >= 0]
    return choice_item(prompt, str(right), [str(n) for n in wrong[: CHOICES - 1]], rng)
