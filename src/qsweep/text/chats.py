"""Conversations: a document of a text that is a list of messages, and what was said in it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qsweep.base.errors import ConfigError

Message = dict[str, str]
"""``role`` and ``content``, as chat templates want them."""
Document = str | list[Message]

# A chat's messages name their text so: OpenAI's way, ShareGPT's way.
_MESSAGE_TEXT = ("content", "value", "text")
# What stands beside it, or alone, where something is called.
_CALLS = ("tool_calls", "function_call")
ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"},
}
"""Whose a message is, by OpenAI's words and ShareGPT's."""


def conversation(turns: Sequence[Any], where: str) -> Document:
    """Messages as a data set has them; their text alone where one does not say whose it is.

    What says nothing, such as a call of a tool, is left out.

    Raises:
        ConfigError: A turn is neither a text nor a message; the line begins with ``where``.
    """
    texts = [message_text(turn, where) for turn in turns]
    roles = [_role(turn) for turn in turns]
    if not turns or None in roles:
        return _joined(texts)
    return [
        {"role": str(role), "content": text}
        for role, text in zip(roles, texts, strict=True)
        if text is not None
    ]


def said(document: Document) -> str:
    """A document's text: of a conversation what was said, turn by turn.

    Templates differ by model; a text that all are measured on should not.
    """
    if isinstance(document, str):
        return document
    return _joined(message["content"] for message in document)


def _role(turn: Any) -> str | None:
    if not isinstance(turn, Mapping):
        return None
    role = turn.get("role", turn.get("from"))
    return ROLES.get(role, role) if isinstance(role, str) else None


def message_text(turn: Any, where: str) -> str | None:
    """What a message says; None where it only calls a tool. Raises ConfigError, as above."""
    if isinstance(turn, str):
        return turn
    if isinstance(turn, Mapping):
        for name in _MESSAGE_TEXT:
            if isinstance(turn.get(name), str):
                return str(turn[name])
            if isinstance(turn.get(name), list):  # parts, of which some may be images
                parts = (p for p in turn[name] if _has_text(p))
                return _joined(message_text(part, where) for part in parts)
        if held := next((name for name in _MESSAGE_TEXT if name in turn), None):
            if turn[held] is None:  # a call of a tool, nothing said
                return None
            kind = type(turn[held]).__name__
            raise ConfigError(f"{where}: a message whose {held} is {kind}, no text")
        if any(turn.get(call) for call in _CALLS):
            return None
    raise ConfigError(f"{where}: a message without {' or '.join(_MESSAGE_TEXT)}")


def _has_text(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, Mapping) and "text" in part)


def _joined(texts: Iterable[str | None]) -> str:
    return "\n\n".join(text for text in texts if text is not None)
