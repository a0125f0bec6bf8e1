"""Conversations as windows: what the assistant says is scored, all else is only read.

Each is a window by itself, so that none sees another. docs/protocol.md says which tokens are scored.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ConfigError
from qsweep.text.chat_template import Answered, ChatTemplate, refusals, told_refusal
from qsweep.text.chats import ROLES, Message, message_text
from qsweep.text.windows import Bos, Preset, Windows, bos_ids, bos_rule, limited_to_model

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
"""Raised whenever the same conversations would now give other windows; it is in their keys."""
NOTED = (
    "template",
    "conversations",
    "conversations_left_out",
    "cut",
    "answers_apart",
    "written_by",
    "new_tokens",
)
"""What windows of answers tell of themselves, beside what all windows tell."""


def to_document(messages: Any, where: str) -> str:
    """A conversation as a document of a corpus: JSON of its messages, ``role`` and ``content``.

    Args:
        messages: A list of them, called OpenAI's way or ShareGPT's.
        where: Their place, for errors.

    Raises:
        ConfigError: It is no list of messages with known roles and texts.
    """
    if not isinstance(messages, list):
        raise ConfigError(
            f"{where}: holds no list of messages but {type(messages).__name__}; "
            "corpus.field=NAME names the field that does"
        )
    return json.dumps([_message(one, where) for one in messages], ensure_ascii=False)


def conversation_windows(
    documents: Sequence[str],
    tokenizer: Any,
    preset: Preset,
    max_length: int,
    model_type: str = "",
    bos: Bos = "auto",
) -> Windows:
    """Conversations as windows in which what the assistant says is scored.

    One longer than the context loses its end; one without an answer in it is left out, and so is
    one that the template refuses.

    Args:
        documents: As :func:`to_document` makes them.
        tokenizer: The reference model's own transformers tokenizer.
        preset: :data:`~qsweep.text.windows.CONVERSATIONS`, perhaps overridden.
        max_length: The model's limit, in tokens.
        model_type: As in the model's ``config.json``.
        bos: As of :func:`~qsweep.text.windows.make_windows`; wherever it is put there, here it
            begins each window.

    Raises:
        ConfigError: No conversation has an answer, or the template does not tell answers apart.
    """
    preset = limited_to_model(preset, max_length)
    start = bos_ids(tokenizer) if bos_rule(tokenizer, model_type, bos) != "none" else []
    template, notes = ChatTemplate(tokenizer, start), _Notes()
    rows = list(islice(_rows(documents, template, preset.context, notes), preset.max_windows))
    if not rows:
        raise ConfigError(f"no conversation has an answer that could be scored{notes.refusal}")
    told = {"template": template.name, **{n: notes[n] for n in NOTED if notes[n]}}
    return answered_windows(rows, preset, "window" if start else "none", told)


def answered_windows(
    rows: Sequence[Answered], preset: Preset, bos: str, notes: Mapping[str, Any]
) -> Windows:
    """Rows of tokens as windows in which only the answers are scored.

    Args:
        rows: Each ends with an answer.
        preset: What they were cut by.
        bos: Whether each begins with BOS: ``window`` or ``none``.
        notes: What else is to be told of them.
    """
    ids, mask = _padded(rows)
    first, last = mask.int().argmax(1), mask.flip(1).int().argmax(1)
    return Windows(ids, first, mask.shape[1] - last, preset, bos, mask, notes)


class _Notes(Counter[str]):
    """What is counted on the way, and why the template refused a conversation, if it did."""

    refusal = ""


def _rows(
    documents: Sequence[str], template: ChatTemplate, context: int, notes: _Notes
) -> Iterator[Answered]:
    """Rows of at most so many tokens, each with an answer in it."""
    for document in documents:
        whole = _tokens(document, template, notes)
        rows = [row for full in whole if (row := cut_row(full, context))]
        notes["conversations" if rows else "conversations_left_out"] += 1
        notes["answers_apart"] += len(rows) > 1
        notes["cut"] += bool(rows) and any(len(full.ids) > context for full in whole)
        yield from rows


def _tokens(document: str, template: ChatTemplate, notes: _Notes) -> list[Answered]:
    try:
        return template.tokens(json.loads(document))
    except refusals() as error:
        notes.refusal = notes.refusal or told_refusal(error)
        return []


def cut_row(row: Answered, context: int) -> Answered | None:
    """A row up to its last answer within the context; None where there is none.

    A row's first token is predicted from nothing, and never scored.
    """
    answers = [(max(1, begin), min(end, context)) for begin, end in row.answers]
    answers = [(begin, end) for begin, end in answers if begin < end]
    return Answered(row.ids[: answers[-1][1]], answers) if answers else None


def _padded(rows: Sequence[Answered]) -> "tuple[Tensor, Tensor]":
    """Ids int64 and what is scored bool, both [rows, longest], filled up at the right."""
    import torch

    ids = torch.zeros(len(rows), max(len(row.ids) for row in rows), dtype=torch.int64)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        for begin, end in row.answers:
            mask[number, begin:end] = True
    return ids, mask


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise ConfigError(f"{where}: a message that is no object with a role and a content")
    told = str(message.get("role", message.get("from")))
    if told not in ROLES:
        raise ConfigError(f"{where}: a message of role {told!r}; there are {', '.join(ROLES)}")
    return {"role": ROLES[told], "content": message_text(message, where) or ""}
