"""The dense model as tasks see it: texts in, log-likelihoods and continuations out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qsweep.errors import QsweepError
from qsweep.quantizers import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from qsweep.evaluators.engine import Engine

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Likelihood:
    """What a model says of one continuation: its log-probability in nats, and whether it is greedy.

    ``tokens`` are how many the continuation has.
    """

    logprob: float
    greedy: bool
    tokens: int


@dataclass(frozen=True)
class Pair:
    """A context and its continuation as token ids; both have at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """How a continuation is drawn. Greedy unless a task demands otherwise."""

    max_new_tokens: int
    until: tuple[str, ...] = ()
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass
class LanguageModel:
    """A dense model with its tokenizer.

    Attributes:
        model: In evaluation mode, on its device.
        tokenizer: The reference model's own.
        max_length: Its context, in tokens.
        batch_size: Rows at once; None: what suits model and device.
        facts: How texts become tokens and are run, for the record.
    """

    model: "PreTrainedModel"
    tokenizer: Any
    max_length: int
    batch_size: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from qsweep.windows import bos_ids, bos_rule

        rule = bos_rule(self.tokenizer, getattr(self.model.config, "model_type", ""))
        self._bos = bos_ids(self.tokenizer) if rule != "none" else []
        self.facts |= {
            "bos": "none" if rule == "none" else "once per prompt",
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device_type": self.model.device.type,
        }

    @cached_property
    def engine(self) -> "Engine":
        """The model split into body and head, so that only scored positions become logits."""
        import torch

        from qsweep.evaluators.engine import Engine
        from qsweep.output_head import KeptLogits, split

        ids = torch.arange(1, 33, device=self.model.device)[None]
        with torch.inference_mode():
            if found := split(self.model, ids):
                return Engine(self.model, *found)
            logits = self.model(input_ids=ids[:, :1], use_cache=False).logits
        return Engine(self.model, None, KeptLogits(logits.shape[-1], logits.device))

    @property
    def start_token(self) -> int:
        """What a text without context is predicted from: BOS, else the end-of-text token."""
        found = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if found is None else found)

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, BOS included where the model wants it, and never twice.

        A chat template has often put BOS there already: a second one is a known cause of wrong
        scores, as is its absence for the models that break without it.
        """
        from qsweep.windows import token_ids

        ids = token_ids(text, self.tokenizer)
        return ids if ids[: len(self._bos)] == self._bos else [*self._bos, *ids]

    def pair(self, context: str, continuation: str) -> Pair:
        """Encode both as one text, cut where the context ends.

        Blanks at the context's end belong to the continuation, as tokenizers join them to words.
        """
        from qsweep.windows import token_ids

        if not context:
            ids = token_ids(continuation, self.tokenizer)
            if ids[:1] == [self.start_token]:
                return Pair((ids[0],), tuple(ids[1:]))
            return Pair((self.start_token,), tuple(ids))
        kept = context.rstrip()
        if kept:
            context, continuation = kept, context[len(kept) :] + continuation
        ids, before = self.encode(context + continuation), len(self.encode(context))
        return Pair(tuple(ids[:before]), tuple(ids[before:]))

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

    def loglikelihoods(
        self, pairs: Sequence[Pair], progress: Callable[[float], None] = lambda _: None
    ) -> list[Likelihood]:
        """Score continuations; contexts that several share are computed once."""
        from qsweep.tasks.likelihood import score_pairs

        return score_pairs(self, pairs, progress)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        progress: Callable[[float], None] = lambda _: None,
    ) -> list[str]:
        """Continue prompts, each up to its first stop text, which is cut off."""
        from qsweep.tasks.generation import generate

        return generate(self, prompts, sampling, progress)


def no_chat_template(model: str) -> str:
    """The line for a model that has no chat template."""
    return f"{model} has no chat template (a base model?); set eval.chat_template=false"


def steps(progress: Progress, label: str) -> Callable[[float], None]:
    """A progress callback with its label filled in."""
    return lambda done: progress(label, done)


__all__ = [
    "LanguageModel",
    "Likelihood",
    "Messages",
    "Pair",
    "Sampling",
    "no_chat_template",
    "silent",
    "steps",
]
