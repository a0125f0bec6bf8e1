"""How many tokens of the calibration text the experts of a mixture were sent. Pure."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qsweep.base.contents import is_number

# What is asked of the text is asked for all but this share of the experts: some are never chosen.
_LEFT_OUT = 0.05


@dataclass(frozen=True)
class ExpertCoverage:
    """What the experts of all layers were sent.

    Attributes:
        tokens: By expert, ascending.
        short: How many experts were sent fewer tokens than their layers have inputs, so that the
            Gram matrix of what went in is singular.
        wanted: How many times as many tokens would be enough for all but a twentieth of the experts;
            at most 1 if they are.
        all_tokens: Whether each was shown all tokens, whichever are its own.
    """

    tokens: tuple[int, ...]
    short: int
    wanted: float
    all_tokens: bool

    @property
    def median(self) -> float:
        """Tokens of the middle expert."""
        return statistics.median(self.tokens)

    @property
    def lowest(self) -> int:
        """Tokens of the least used expert."""
        return self.tokens[0]

    @property
    def unseen(self) -> int:
        """How many experts were sent no token at all."""
        return self.tokens.count(0)

    @property
    def short_share(self) -> float:
        """The share of experts that were sent fewer tokens than they have inputs."""
        return self.short / len(self.tokens)


def expert_coverage(details: Mapping[str, Any]) -> ExpertCoverage | None:
    """What an artifact's details tell of its experts; None where they tell nothing.

    >>> layer = {"width": 8, "tokens": [0, 4, 16, 20]}
    >>> found = expert_coverage({"expert_coverage": {"modules": {"layers.0.experts": layer}}})
    >>> (found.median, found.unseen, found.short_share, found.wanted)
    (10.0, 1, 0.5, 2.0)
    """
    told = details.get("expert_coverage")
    modules = told.get("modules") if isinstance(told, Mapping) else None
    if not isinstance(modules, Mapping):
        return None
    counts = [
        (count, layer["width"])
        for layer in modules.values()
        if isinstance(layer, Mapping) and is_number(layer.get("width"))
        for count in layer.get("tokens") or ()
        if is_number(count)
    ]
    if not counts:
        return None
    seen = sorted(width / count for count, width in counts if count)
    # Those without a token need more than can be told from the others.
    place = math.ceil((1 - _LEFT_OUT) * len(counts)) - 1
    return ExpertCoverage(
        tokens=tuple(sorted(count for count, _ in counts)),
        short=sum(count < width for count, width in counts),
        wanted=seen[min(place, len(seen) - 1)] if seen else math.inf,
        all_tokens=bool(told.get("all_tokens")) if isinstance(told, Mapping) else False,
    )
