"""Words and facts that questions are made of, and what makes a question of them."""

import json
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from qsweep.tasks.items import Item

CHOICES = 4


@lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def table(name: str) -> Any:
    """A table of ``tables.json``, which was written for qsweep: a list of words, or pairs."""
    return _tables()[name]


def choice_item(prompt: str, answer: str, wrong: Sequence[str], rng: random.Random) -> Item:
    """A question with choices.

    Args:
        prompt: What the model reads.
        answer: The right choice.
        wrong: The other choices.
        rng: Draws their order.
    """
    choices = [answer, *wrong]
    rng.shuffle(choices)
    return Item(prompt, answer, tuple(choices))
