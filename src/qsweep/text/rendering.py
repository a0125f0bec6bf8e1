"""Documents and conversations as the token ids of a whole one."""

import sys
from datetime import datetime
from typing import Any

from qsweep.base.errors import ConfigError, in_one_line
from qsweep.text.chats import Document
from qsweep.text.windows import bos_ids, bos_rule, token_ids

TODAY = datetime(2024, 7, 26)  # noqa: DTZ001
"""The date that templates are told which ask for it, so that the same text has the same tokens
tomorrow. It is what Llama 3's says where it is told none."""


class Renderer:
    """Makes ids of whole documents.

    A text ends with a blank line and, where the tokenizer puts something before a text, begins with
    that. A conversation is put into the chat template, which says all of it. Templates
    refuse some conversations (a system's message, two turns of one role): these have no ids, and
    :meth:`tell` says how many they were.

    Args:
        tokenizer: The model's own.
        model_type: As in the model's ``config.json``.
        template: The chat template; by default the tokenizer's.
    """

    def __init__(self, tokenizer: Any, model_type: str = "", template: str | None = None):
        self._tokenizer, self._template = tokenizer, template
        none = bos_rule(tokenizer, model_type) == "none"
        self._start = [] if none else bos_ids(tokenizer)
        self._asked = 0
        self._refused: list[str] = []

    def __call__(self, document: Document) -> list[int]:
        """The ids; none of what is empty or refused."""
        if isinstance(document, str):
            if not document.strip():
                return []
            return [*self._start, *token_ids(f"{document}\n\n", self._tokenizer)]
        self._asked += 1
        try:
            text = self._tokenizer.apply_chat_template(
                document,
                chat_template=self._template,
                tokenize=False,
                strftime_now=TODAY.strftime,
            )
        except Exception as error:  # of Jinja, and what a template's own code raises
            self._refused.append(in_one_line(error))
            return []
        return token_ids(text, self._tokenizer)

    @property
    def refusal(self) -> ConfigError | None:
        """What to say where there is too little text: the template took no conversation."""
        if not self._refused or len(self._refused) < self._asked:
            return None
        return ConfigError(
            f"calibration.packing=conversations: the model's chat template takes none of the text's "
            f"{self._asked} conversations ({self._refused[0]}); calibration.packing=documents packs "
            "them without it"
        )

    def tell(self) -> None:
        """Say what was refused, if anything was."""
        if self._refused:
            print(
                f"note: {len(self._refused)} of {self._asked} conversations are left out, for the chat "
                f"template refuses them ({self._refused[0]})",
                file=sys.stderr,
            )
