"""A dense model with its tokenizer: what turns a task's texts into tokens and rows to run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import QsweepError
from qsweep.base.progress import Progress
from qsweep.tasks.requests import Pair
from qsweep.text.vocabulary import require_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from qsweep.evaluate.engine import Engine

Messages = list[dict[str, str]]


@dataclass
class TextModel:
    """A dense model with its tokenizer.

    Attributes:
        model: In evaluation mode, on its device.
        tokenizer: The reference model's own.
        max_length: Its context, in tokens.
        batch_size: Rows at once; None: what suits model and device.
        facts: How texts become tokens and are run, for the record.
        start: What every text must begin with, one that lost its begin too: a Gemma's BOS.
    """

    model: "PreTrainedModel"
    tokenizer: Any
    max_length: int
    batch_size: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from qsweep.text.windows import bos_ids, bos_rule

        rule = bos_rule(self.tokenizer, getattr(self.model.config, "model_type", ""))
        self._bos = bos_ids(self.tokenizer) if rule != "none" else []
        self.start = tuple(self._bos) if rule == "window" else ()
        self.facts |= {
            "bos": "none" if rule == "none" else "once per prompt",
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device_type": self.model.device.type,
        }

    @cached_property
    def engine(self) -> "Engine":
        """The model split into body and head, so that only scored positions become logits."""
        import torch

        from qsweep.evaluate.engine import open_engine

        with torch.inference_mode():
            return open_engine(self.model, torch.arange(1, 33)[None])

    @property
    def start_token(self) -> int:
        """What a text without context is predicted from: BOS, else the end-of-text token.

        Raises:
            QsweepError: The tokenizer has neither.
        """
        for found in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if found is not None:
                return int(found)
        raise QsweepError(
            "the tokenizer has neither a BOS nor an EOS token, so that a text without context has "
            "nothing to be predicted from; name one in tokenizer_config.json"
        )

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, BOS included where the model wants it, and never twice.

        A chat template has often put BOS there already: a second one is a known cause of wrong
        scores, as is its absence for the models that break without it.
        """
        ids = self._ids(text)
        return ids if ids[: len(self._bos)] == self._bos else [*self._bos, *ids]

    def _ids(self, text: str) -> list[int]:
        from qsweep.text.windows import token_ids

        ids = token_ids(text, self.tokenizer)
        rows = getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        if rows is not None:
            require_rows(ids, self.tokenizer, rows)
        return ids

    def pair(self, context: str, continuation: str) -> Pair:
        """Encode both as one text, cut where the context ends; see :meth:`pairs`."""
        return self.pairs(context, [continuation])[0]

    def pairs(self, context: str, continuations: Sequence[str]) -> list[Pair]:
        """Encode a context with each of its continuations, all cut at the same place.

        Blanks at the context's end belong to the continuation, as tokenizers join them to words.
        Where a continuation's begin fuses with the context's end into one token (``g(`` and ``)``),
        all are cut before that token: the probabilities of whole texts after what they share are
        compared, and no continuation is without a token.

        Raises:
            QsweepError: There is no context, and no token to stand for it.
        """
        kept = context.rstrip()
        blanks = context[len(kept) :] if kept else ""
        own = self.encode(kept or context) if context else []
        texts = [f"{kept or context}{blanks}{rest}" for rest in continuations]
        wholes = [self.encode(text) if context else self._ids(text) for text in texts]
        ends = [min(len(commonprefix([own, ids])), len(ids) - 1) for ids in wholes]
        cut = max(0, min(ends, default=0))
        fused = 0
        if cut < len(own):
            self.count("fused_contexts")
            fused = len(str(self.tokenizer.decode(own[cut:])).encode())
        if cut == 0:
            start = [self.start_token]
            wholes = [ids if ids[:1] == start and len(ids) > 1 else start + ids for ids in wholes]
            cut = 1
        return [Pair(tuple(ids[:cut]), tuple(ids[cut:]), fused) for ids in wholes]

    def count(self, name: str, number: int = 1) -> None:
        """Count something for the record, such as contexts that were too long."""
        if number:
            self.facts[name] = self.facts.get(name, 0) + number

    def chat(self, messages: Messages) -> str:
        """Messages in the model's chat template, ready for its answer.

        Raises:
            QsweepError: The model has none.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise QsweepError(no_chat_template(str(self.tokenizer.name_or_path)))
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )


def no_chat_template(model: str) -> str:
    """The line for a model that has no chat template."""
    return f"{model} has no chat template (a base model?); set eval.chat_template=false"


def labelled(progress: Progress, label: str) -> Callable[[float], None]:
    """A progress callback with its label filled in."""
    return lambda done: progress(label, done)
