"""A conversation as tokens, by the model's own chat template, and which of them are answers.

A template that marks what the assistant says (``{% generation %}``) is asked. Of any other one the
conversation's begins are rendered, and compared: an answer begins where a conversation goes on after
the question with the assistant's turn opened, and ends where it does after the answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from os.path import commonprefix
from typing import Any

from qsweep.base.errors import ConfigError, in_one_line
from qsweep.text.rendering import TODAY
from qsweep.text.windows import token_ids

Messages = list[dict[str, str]]
Span = tuple[int, int]

OWN, PLAIN = "the model's own", "plain"
# As transformers recognizes it.
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_BREAK = "\n\n"


@dataclass(frozen=True)
class Answered:
    """A conversation up to its last answer: its tokens, and the places of those that are answers."""

    ids: list[int]
    answers: list[Span]


def refusals() -> tuple[type[Exception], ...]:
    """What a template raises that does not take a conversation.

    Some want a question before every answer, some no system's message.
    """
    from jinja2 import TemplateError

    return (TemplateError, IndexError, KeyError, TypeError, ValueError)


def told_refusal(error: Exception) -> str:
    """What is said of one of :func:`refusals`, behind the words that nothing could be taken."""
    return f" (the chat template refuses: {in_one_line(error)})"


class ChatTemplate:
    """Makes tokens of conversations.

    Attributes:
        name: ``the model's own``, or ``plain`` where a model has none: ``User: ...``, a blank line,
            ``Assistant: ...``.
    """

    def __init__(self, tokenizer: Any, start: Sequence[int] = ()):
        """Take a tokenizer of transformers, and what each conversation must begin with."""
        self.name = OWN if getattr(tokenizer, "chat_template", None) else PLAIN
        self._tokenizer, self._start = tokenizer, list(start)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {number for number, token in added.items() if token.special}
        self._special = special | set(tokenizer.all_special_ids)
        own = str(tokenizer.get_chat_template()) if self.name == OWN else ""
        self._marks = bool(_MARKS.search(own))

    def tokens(self, messages: Messages) -> list[Answered]:
        """A conversation, whole; up to each of its answers by itself where only that shows them.

        Some templates render an answer otherwise once it is not the last (reasoning is left out of
        it): each is then read as it was given, after what the model is shown of those before.

        Args:
            messages: ``role`` and ``content`` of each. Without an answer nothing comes of them.

        Raises:
            ConfigError: What the template makes of a question is not the begin of what it makes of
                question and answer.
        """
        answers = _answers(messages)
        if not answers:
            return []
        messages = messages[: answers[-1] + 1]
        if self._marks and (marked := self._marked(messages)).answers:
            return [marked]
        whole = self._compared(messages, answers)
        if whole is None and len(answers) > 1:
            parts = [self._compared(messages[: last + 1], [last]) for last in answers]
            found = [part for part in parts if part is not None]
            if len(found) == len(parts):
                return found
        if whole is None:
            raise ConfigError(
                "the model's chat template does not tell what the assistant says: what it makes of a "
                "question is not the begin of what it makes of question and answer; mark answers in "
                "it with {% generation %}, or leave assistant_only out"
            )
        return [whole]

    def question(self, messages: Messages) -> list[int]:
        """All before the first answer, with the assistant's turn opened; nothing without one."""
        answers = _answers(messages)
        if not answers:
            return []
        ids = self._encode(self._render(messages[: answers[0]], opened=True))
        return self._answered(ids, []).ids

    def _marked(self, messages: Messages) -> Answered:
        found = self._tokenizer.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            strftime_now=TODAY.strftime,
        )
        ids, mask = list(found["input_ids"]), found["assistant_masks"]
        spans, at = [], 0
        for said, run in groupby(mask):
            end = at + len(list(run))
            if said:
                spans.append((at, end))
            at = end
        if greetings := _unasked(messages):
            begin = self._shared(self._render(messages[:greetings]), ids)
            spans = [(max(a, begin), b) for a, b in spans if b > begin]
        return self._answered(ids, spans)

    def _compared(self, messages: Messages, answers: Sequence[int]) -> Answered | None:
        """Answers found by comparing begins; None where the template does not keep to them."""
        text = self._render(messages)
        ids, spans = self._encode(text), []
        for number in answers:
            asked = self._render(messages[:number])
            opened = commonprefix([self._render(messages[:number], opened=True), text])
            given = self._render(messages[: number + 1])
            if not (opened.startswith(asked) and text.startswith(given)):
                return None
            spans.append((self._shared(opened, ids), self._shared(given, ids)))
        return self._answered(ids, spans)

    def _shared(self, begin: str, ids: list[int]) -> int:
        """How many tokens of a text are those of its begin."""
        return len(commonprefix([self._encode(begin), ids]))

    def _answered(self, ids: list[int], spans: Sequence[Span]) -> Answered:
        shift = 0
        if ids[: len(self._start)] != self._start:
            ids, shift = [*self._start, *ids], len(self._start)
        kept = [self._without_tail(ids, (a + shift, b + shift)) for a, b in spans]
        return Answered(ids, [(a, b) for a, b in kept if a < b])

    def _without_tail(self, ids: list[int], span: Span) -> Span:
        # What follows the token that ends a turn is the template's, not the model's.
        begin, end = span
        last = next((n for n in reversed(range(begin, end)) if ids[n] in self._special), None)
        if last is None or self._tokenizer.decode(ids[last + 1 : end]).strip():
            return span
        return begin, last + 1

    def _encode(self, text: str) -> list[int]:
        return token_ids(text, self._tokenizer)

    def _render(self, messages: Messages, *, opened: bool = False) -> str:
        """A conversation as text, with the assistant's next turn ``opened`` or not."""
        if self.name == PLAIN:
            turns = [f"{one['role'].capitalize()}: {one['content']}" for one in messages]
            return _BREAK.join([*turns, "Assistant:"] if opened else turns)
        return str(
            self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=opened,
                strftime_now=TODAY.strftime,
            )
        )


def _answers(messages: Messages) -> list[int]:
    """Which messages are answers: what the assistant says once it was asked."""
    first = _unasked(messages)
    said = enumerate(messages[first:], first)
    return [n for n, one in said if one["role"] == "assistant" and one["content"].strip()]


def _unasked(messages: Messages) -> int:
    """How many messages of the assistant's stand before any other: what nobody asked for."""
    others = (n for n, one in enumerate(messages) if one["role"] != "assistant")
    return next(others, len(messages))
