"""Begins of texts, for the reference to go on from: the first tokens, or a conversation's question."""

import json
from collections.abc import Sequence
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.text.chat_template import ChatTemplate, refusals, told_refusal
from qsweep.text.windows import bos_ids, bos_rule, token_ids

MOST = 128
"""As many prompts are taken of a text, its first."""
_TOKENS = 32


def prompts(
    documents: Sequence[str],
    tokenizer: Any,
    room: int,
    model_type: str = "",
    *,
    conversations: bool = False,
) -> list[list[int]]:
    """What the reference goes on from, as token ids.

    A conversation without an answer is left out, and so is one that the template refuses.

    Args:
        documents: Texts, of which the first 32 tokens are taken, or conversations as of
            :func:`~qsweep.text.conversations.to_document`, of which all before the first answer.
        tokenizer: The reference model's own transformers tokenizer.
        room: Longer ones are left out, in tokens.
        model_type: As in the model's ``config.json``.
        conversations: Which of the two the documents are.

    Raises:
        ConfigError: None is short enough, or there is none: no text, or no conversation that has an
            answer and that the template takes; or there is no room.
    """
    if room < 1:
        raise ConfigError("new_tokens leaves no room for a prompt in the model's context; lower it")
    start = bos_ids(tokenizer) if bos_rule(tokenizer, model_type) != "none" else []
    template, refusal = ChatTemplate(tokenizer, start), ""
    taken: list[list[int]] = []
    longer = 0
    for document in documents:
        if conversations:
            try:
                ids = template.question(json.loads(document))
            except refusals() as error:
                refusal = refusal or told_refusal(error)
                continue
        else:
            ids = token_ids(document, tokenizer)[:_TOKENS]
            ids = [*start, *ids] if ids else []
        if 0 < len(ids) <= room:
            taken.append(ids)
        longer += len(ids) > room
        if len(taken) == MOST:
            break
    if taken:
        return taken
    if conversations and not longer:
        raise ConfigError(
            f"no conversation has an answer, whose question would be asked{refusal}; choose another "
            "text"
        )
    raise ConfigError(
        f"no begin of a document is of 1 to {room} tokens, which is what the model's context "
        "leaves of it; lower new_tokens, or choose another text"
    )
