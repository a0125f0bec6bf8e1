"""How much of the calibration text the experts of a mixture are sent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qsweep.quantizers.native.layers import Stage
from qsweep.quantizers.native.stats import InputStats


@dataclass
class Coverage:
    """Tokens that each expert is sent, whichever it is shown.

    Attributes:
        all_tokens: Whether every expert is shown all tokens.
        tokens: By module of experts, and by an expert's number, how many are its own.
        width: By module, how many inputs the widest layer of an expert has: with fewer tokens its
            Gram matrix is singular.
    """

    all_tokens: bool = False
    tokens: dict[str, dict[int, int]] = field(default_factory=dict)
    width: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        full_name: Callable[[str], str],
        stages: Sequence[Stage],
        stats: Sequence[InputStats],
    ) -> None:
        """Take down what went into stages; those of no experts are passed over."""
        for stage, seen in zip(stages, stats, strict=True):
            if seen.routed is None:
                continue
            module = full_name(stage.experts)
            number = int(stage.linears[0].removeprefix(f"{stage.experts}.").partition(".")[0])
            self.tokens.setdefault(module, {})[number] = seen.routed
            self.width[module] = max(self.width.get(module, 0), stage.channels)

    def details(self) -> dict[str, Any]:
        """``expert_coverage`` of an artifact's details; nothing where there are no experts."""
        if not self.tokens:
            return {}
        modules = {
            name: {
                "width": self.width[name],
                "tokens": [count for _, count in sorted(found.items())],
            }
            for name, found in self.tokens.items()
        }
        return {"expert_coverage": {"all_tokens": self.all_tokens, "modules": modules}}
