"""Calibration samples of whole documents or conversations, instead of windows at random places.

In a shuffled order each is put into the first sample that has room for it. What room is left in the end
is filled with the begin of one that fits nowhere whole, so that all samples are of one length and there
is no padding that a quantizer would have to leave out. One that is longer than a sample begins it and is
cut at its end, as llm-compressor's examples cut every conversation; a causal model computes the tokens before a cut
as it would without it.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.text.calibration import CalibrationTokens
from qsweep.text.chats import Document
from qsweep.text.corpora import MOST_REPEATS, too_short
from qsweep.text.rendering import Renderer

Piece = tuple[int, int]
"""The number of a document, and how many of its first tokens are taken."""


def packed_samples(
    documents: Sequence[Document],
    tokenizer: Any,
    num_samples: int,
    max_seq_len: int,
    seed: int,
    model_type: str = "",
    template: str | None = None,
) -> CalibrationTokens:
    """Samples of whole documents.

    Args:
        documents: Texts, and conversations, which are put into the chat template.
        tokenizer: The model's own.
        num_samples: How many samples; a text that is too short for them is gone through again.
        max_seq_len: Tokens of each.
        seed: Determines the order.
        model_type: A Gemma's documents each begin with BOS.
        template: The chat template; by default the tokenizer's.

    Raises:
        ConfigError: All documents together have fewer tokens than one sample, or too few for so many;
            or the template takes none of the conversations.
    """
    render = Renderer(tokenizer, model_type, template)
    ids: dict[int, list[int]] = {}

    def length_of(number: int) -> int:
        if number not in ids:
            ids[number] = render(documents[number])
        return len(ids[number])

    def order() -> Iterator[int]:
        draw = random.Random(seed)  # noqa: S311 - not for cryptography
        numbers = list(range(len(documents)))
        for _ in range(MOST_REPEATS):
            draw.shuffle(numbers)
            yield from numbers
            # Now all of them are known.
            if (total := sum(map(len, ids.values()))) < max_seq_len:
                raise render.refusal or too_short(total, max_seq_len)
        raise ConfigError(
            f"calibration.num_samples={num_samples}: the calibration text has {total} tokens, and "
            f"{num_samples} samples of {max_seq_len} repeat it more than {MOST_REPEATS} times"
        )

    packed = first_fit(order(), length_of, num_samples, max_seq_len)
    render.tell()
    taken: dict[int, int] = {}
    for number, length in (piece for sample in packed for piece in sample):
        taken[number] = max(length, taken.get(number, 0))
    return CalibrationTokens(
        [[token for n, length in sample for token in ids[n][:length]] for sample in packed],
        distinct=sum(taken.values()),
    )


def first_fit(
    order: Iterator[int], length_of: Callable[[int], int], count: int, room: int
) -> list[list[Piece]]:
    """Fill so many samples: each document goes into the first with room for all of it. Pure.

    Args:
        order: Documents by number, one after the other, without end.
        length_of: Tokens of a document.
        count: How many samples.
        room: Tokens of each.

    Returns:
        The pieces of every sample, which fill it; only a sample's last one may be cut.
    """
    samples: list[list[Piece]] = []
    free: list[int] = []
    # What is longer than the room in any sample, which can only become less.
    left_over: list[int] = []
    while len(samples) < count or len(left_over) < sum(map(bool, free)):
        number = next(order)
        length = length_of(number)
        if not length:
            continue
        place = next((n for n, left in enumerate(free) if length <= left), None)
        if place is not None:
            samples[place].append((number, length))
            free[place] -= length
        elif len(samples) < count:
            samples.append([(number, min(length, room))])
            free.append(room - min(length, room))
        else:
            left_over.append(number)
    for sample, left in zip(samples, free, strict=True):
        if left:
            sample.append((left_over.pop(0), left))
    return samples
