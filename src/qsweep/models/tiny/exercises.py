"""Seeded arithmetic and simple logic, in the wording that the pocket model was trained on.

An exercise is a question and its answer, one line each way. What is held out is decided by a hash of
the *question*, so that a test question never occurred in training, whatever seed drew it.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

Split = Literal["train", "test"]

_NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Maria Noah Olga Paul".split()
)
_KINDS = "birds cats dogs fish horses trees flowers cars boats robots books lamps".split()
_TRAITS = "red blue small large old new fast slow warm cold round heavy".split()
_COMPARE = {"taller": "shorter", "older": "younger", "faster": "slower", "stronger": "weaker"}


class Exercise(NamedTuple):
    """A question that ends where the answer begins, and the answer."""

    kind: str
    question: str
    answer: str

    @property
    def text(self) -> str:
        """Question and answer as one line of training text."""
        return f"{self.question} {self.answer}"

    @property
    def split(self) -> Split:
        """``test`` for one question in ten."""
        return "test" if hashlib.sha256(self.question.encode()).digest()[0] < 26 else "train"


def addition(rng: random.Random) -> Exercise:
    """Sums of two numbers below 100."""
    a, b = rng.randrange(100), rng.randrange(100)
    return Exercise("addition", f"{a} + {b} =", str(a + b))


def subtraction(rng: random.Random) -> Exercise:
    """Differences of two numbers below 100, never negative."""
    a, b = sorted((rng.randrange(100), rng.randrange(100)), reverse=True)
    return Exercise("subtraction", f"{a} - {b} =", str(a - b))


def multiplication(rng: random.Random) -> Exercise:
    """The multiplication table up to 12."""
    a, b = rng.randrange(1, 13), rng.randrange(1, 13)
    return Exercise("multiplication", f"{a} * {b} =", str(a * b))


def transitive(rng: random.Random) -> Exercise:
    """Three people in an order that two sentences give; who is at an end of it."""
    a, b, c = rng.sample(_NAMES, 3)
    more, less = rng.choice(list(_COMPARE.items()))
    facts = [f"{a} is {more} than {b}.", f"{b} is {more} than {c}."]
    rng.shuffle(facts)
    asked, answer = rng.choice([(more, a), (less, c)])
    question = f"{' '.join(facts)} Who is {_superlative(asked)}? Answer:"
    return Exercise("transitive", question, answer)


def syllogism(rng: random.Random) -> Exercise:
    """Does a class inclusion with a trait carry over to a member."""
    kind, other = rng.sample(_KINDS, 2)
    trait, wrong = rng.sample(_TRAITS, 2)
    name = rng.choice(_NAMES)
    owner = kind if rng.random() < 0.5 else other
    question = (
        f"All {kind} are {trait}. All {other} are {wrong}. {name} has only {owner}. "
        f"What {name} has is {trait}, true or false? Answer:"
    )
    return Exercise("syllogism", question, "true" if owner == kind else "false")


GENERATORS: tuple[Callable[[random.Random], Exercise], ...] = (
    addition,
    subtraction,
    multiplication,
    transitive,
    syllogism,
)


def exercises(split: Split, seed: int) -> Iterator[Exercise]:
    """Exercises of one split without end, every kind equally often, determined by ``seed``."""
    rng = random.Random(seed)  # noqa: S311 - not for cryptography
    while True:
        for generate in GENERATORS:
            exercise = generate(rng)
            if exercise.split == split:
                yield exercise


def _superlative(comparative: str) -> str:
    return "the " + comparative.removesuffix("er") + "est"
