"""What a task asks of a model, and what it is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    """A context and its continuation as token ids; both have at least one.

    ``fused`` are the bytes of the context's text that the continuation holds, because they share a
    token with it.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    fused: int = 0

    @property
    def length(self) -> int:
        """Tokens to run: all but the last."""
        return len(self.context) + len(self.continuation) - 1


@dataclass(frozen=True)
class Ask:
    """A prompt to be continued.

    Attributes:
        prompt: Its token ids, one at least.
        new: How many tokens may follow it.
        seed: Of what the answer is drawn by; None: the likeliest token at every step.
    """

    prompt: tuple[int, ...]
    new: int
    seed: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a model said, token by token.

    Attributes:
        tokens: The ids, with the token that ends it and what belongs to a stop text.
        ended: Whether it came to an end, and did not run into the most that was allowed.
    """

    tokens: tuple[int, ...]
    ended: bool


# What the harness generates where a task does not say how much.
MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class Sampling:
    """How a continuation is drawn. Greedy unless a task demands otherwise."""

    max_new_tokens: int
    until: tuple[str, ...] = ()
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def of_harness(cls, options: Mapping[str, Any]) -> "Sampling":
        """What lm-evaluation-harness's ``generation_kwargs`` mean."""
        until = options.get("until") or []
        temperature = float(options.get("temperature") or 0.0)
        limit = options.get("max_gen_toks") or options.get("max_new_tokens") or MAX_NEW_TOKENS
        return cls(
            max_new_tokens=int(limit),
            until=tuple([until] if isinstance(until, str) else until),
            do_sample=bool(options.get("do_sample")) and temperature > 0,
            temperature=temperature or 1.0,
            top_p=float(options.get("top_p") or 1.0),
            top_k=int(options.get("top_k") or 0),
        )
