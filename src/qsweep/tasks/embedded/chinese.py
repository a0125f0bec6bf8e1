"""Small questions in Chinese: opposites, idioms, sums in words, capitals."""

import random
from collections.abc import Iterator, Sequence

from qsweep.tasks.embedded.tables import CHOICES, choice_item, table
from qsweep.tasks.items import Item

_DIGITS = "零一二三四五六七八九"


def chinese_basics(count: int, seed: int) -> list[Item]:
    """At most so many questions, in an order drawn by ``seed``."""
    rng = random.Random(f"chinese {seed}")  # noqa: S311 - not for cryptography
    items = [_item(*question, rng) for question in _questions()]
    rng.shuffle(items)
    return items[:count]


def _questions() -> Iterator[tuple[str, str, Sequence[str]]]:
    """Prompt, answer, and the words that distractors are drawn from."""
    opposites, idioms = table("opposites"), table("idioms")
    for first, second in opposites:
        yield f"“{first}”的反义词是“", second, [pair[1] for pair in opposites]
    for idiom in idioms:
        yield f"成语：{idiom[:-1]}", idiom[-1], [other[-1] for other in idioms]
    capitals = table("chinese capitals")
    for country, city in capitals.items():
        yield f"{country}的首都是", city, list(capitals.values())
    for first in range(1, 9):
        for second in range(first, 10 - first):
            prompt = f"{_DIGITS[first]}加{_DIGITS[second]}等于"
            yield prompt, _DIGITS[first + second], _DIGITS[1:]


def _item(prompt: str, answer: str, others: Sequence[str], rng: random.Random) -> Item:
    # In the prompt a word would be no fair distractor.
    fair = sorted({word for word in others if word != answer and word not in prompt})
    return choice_item(prompt, answer, rng.sample(fair, CHOICES - 1), rng)
