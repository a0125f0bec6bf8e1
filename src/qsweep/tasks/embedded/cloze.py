"""Which continuation is the true one: held-out prose and code of the Python installation.

The texts are the test split of :mod:`qsweep.models.tiny.text`, which neither the embedded model's training
nor any calibration on Python's text has seen. Distractors come from the same document, so that its
words alone do not give the answer away.
"""

import random
import re

from qsweep.tasks.embedded.tables import CHOICES, choice_item
from qsweep.tasks.items import Item

_CONTEXT = {"docs": 160, "code": 240}
# Characters of a continuation, and how far a distractor's may be from them.
_SHORTEST, _LONGEST, _TOLERANCE = 12, 30, 5


def cloze(kind: str, count: int, seed: int) -> list[Item]:
    """So many items; none where the installation carries no such text."""
    from qsweep.models.tiny.text import documents

    rng = random.Random(f"{kind} {seed}")  # noqa: S311 - not for cryptography
    texts = [_clean(text, kind) for text in documents(kind, "test")]  # type: ignore[arg-type]
    texts = [text for text in texts if len(text) > 4 * _CONTEXT[kind]]
    items: list[Item] = []
    for _ in range(50 * count):
        if len(items) == count or not texts:
            break
        # Long documents have more to ask about.
        text = rng.choices(texts, [len(t) for t in texts])[0]
        if (item := _item(text, kind, rng)) is not None and item not in items:
            items.append(item)
    return items


def _item(text: str, kind: str, rng: random.Random) -> Item | None:
    size = _CONTEXT[kind]
    begin = rng.randrange(0, len(text) - size - _LONGEST)
    start = _boundary(text, begin, kind)
    at = _boundary(text, start + size, kind)
    answer = _continuation(text, at, kind)
    if not answer:
        return None
    wrong: list[str] = []
    for _ in range(100):
        place = _boundary(text, rng.randrange(0, len(text) - _LONGEST), kind)
        other = _continuation(text, place, kind)
        near = abs(len(other) - len(answer)) <= _TOLERANCE
        if other and near and other not in (answer, *wrong) and abs(place - at) > size:
            wrong.append(other)
        if len(wrong) == CHOICES - 1:
            return choice_item(text[start:at], answer, wrong, rng)
    return None


def _continuation(text: str, at: int, kind: str) -> str:
    # Prose: whole words. Code: to the end of the line.
    if kind == "code":
        found = re.compile(r"[^\n]*").match(text, at)
        words = found.group().rstrip() if found else ""
        return words if _SHORTEST <= len(words) <= 2 * _LONGEST and words.strip() else ""
    found = re.compile(rf"(?: \S+)+?(?<=.{{{_SHORTEST}}})(?= )").match(text, at)
    words = found.group() if found else ""
    return words if len(words) <= _LONGEST else ""


def _boundary(text: str, at: int, kind: str) -> int:
    # Prose: the blank before a word. Code: the begin of a name after something else than a name.
    pattern = r" (?=\S)" if kind == "docs" else r"(?<=[ (\[.=,])(?=[A-Za-z_])"
    found = re.compile(pattern).search(text, min(at, len(text)))
    return found.start() if found else len(text)


def _clean(text: str, kind: str) -> str:
    return re.sub(r"\s+", " ", text) if kind == "docs" else text
