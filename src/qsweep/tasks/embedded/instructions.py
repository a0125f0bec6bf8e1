"""Instructions whose fulfilment a pattern can verify, each answered in one line."""

import random
import re
from collections.abc import Callable

from qsweep.tasks.embedded.tables import table
from qsweep.tasks.items import Item


def instructions(count: int, seed: int) -> list[Item]:
    """So many instructions, every kind equally often."""
    rng = random.Random(f"instructions {seed}")  # noqa: S311 - not for cryptography
    found: dict[str, Item] = {}
    while len(found) < count:
        for kind in _KINDS:
            item = kind(rng)
            found.setdefault(item.prompt, item)
    return list(found.values())[:count]


def _ask(text: str, answer: str, pattern: str | None = None) -> Item:
    exact = rf"^\s*{re.escape(answer)}\s*\.?\s*$"
    return Item(f"Instruction: {text}\nResponse:", answer, pattern=pattern or exact)


def _capitals(rng: random.Random) -> Item:
    word = rng.choice(table("words"))
    return _ask(f'Write the word "{word}" in capital letters.', word.upper())


def _repeat(rng: random.Random) -> Item:
    word, times = rng.choice(table("words")), rng.choice((("twice", 2), ("three times", 3)))
    return _ask(f'Write the word "{word}" {times[0]}.', " ".join([word] * times[1]))


def _quote(rng: random.Random) -> Item:
    word = rng.choice(table("words"))
    return _ask(f"Put the word {word} into double quotes.", f'"{word}"')


def _first_letter(rng: random.Random) -> Item:
    word = rng.choice(table("words"))
    return _ask(f'Write only the first letter of the word "{word}".', word[0])


def _count(rng: random.Random) -> Item:
    low = rng.randrange(1, 60)
    numbers = [str(n) for n in range(low, low + rng.choice((4, 5)))]
    text = f"Count from {numbers[0]} to {numbers[-1]}, with commas between the numbers."
    return _ask(text, ", ".join(numbers))


def _list(rng: random.Random) -> Item:
    words = rng.sample(table("words"), 3)
    text = f"Write the words {words[0]}, {words[1]} and {words[2]}, separated by semicolons."
    return _ask(text, "; ".join(words))


def _end(rng: random.Random) -> Item:
    word, end = rng.sample(table("words"), 2)
    text = f'Write the word "{word}" and end with the word "{end}".'
    return _ask(text, f"{word} {end}", rf"^\s*{word}\b.*\b{end}\W*$")


_KINDS: tuple[Callable[[random.Random], Item], ...] = (
    _capitals,
    _repeat,
    _quote,
    _first_letter,
    _count,
    _list,
    _end,
)
