"""What a model knows of the world: capitals, continents, chemical symbols."""

import random
from collections.abc import Iterator

from qsweep.tasks.embedded.tables import CHOICES, choice_item, table
from qsweep.tasks.items import Item


def world_facts(count: int, seed: int) -> list[Item]:
    """At most so many questions on the tables, in an order drawn by ``seed``."""
    rng = random.Random(f"facts {seed}")  # noqa: S311 - not for cryptography
    items = [*_capitals(rng), *_continents(rng), *_symbols(rng)]
    rng.shuffle(items)
    return items[:count]


def _capitals(rng: random.Random) -> Iterator[Item]:
    for pairs in table("capitals").values():
        for country, capital in pairs.items():
            # Others of the continent: the region alone does not give the answer away.
            others = [c for c in pairs.values() if c != capital]
            prompt = f"The capital of {country} is"
            yield choice_item(prompt, capital, rng.sample(others, CHOICES - 1), rng)


def _continents(rng: random.Random) -> Iterator[Item]:
    for continent, pairs in table("capitals").items():
        others = [c for c in table("capitals") if c != continent]
        for country in list(pairs)[:12]:
            prompt = f"The country {country} lies on the continent of"
            yield choice_item(prompt, continent, rng.sample(others, CHOICES - 1), rng)


def _symbols(rng: random.Random) -> Iterator[Item]:
    pairs = table("symbols")
    for element, symbol in pairs.items():
        others = [s for s in pairs.values() if s != symbol]
        # Those with the same first letter first, as the letter is easily guessed.
        others.sort(key=lambda s: (s[0] != symbol[0], rng.random()))
        prompt = f"The chemical symbol of {element} is"
        yield choice_item(prompt, symbol, others[: CHOICES - 1], rng)
