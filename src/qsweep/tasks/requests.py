"""What a task asks of a model, and what it is told."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


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
class Sampling:
    """How a continuation is drawn. Greedy unless a task demands otherwise."""

    max_new_tokens: int
    until: tuple[str, ...] = ()
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
