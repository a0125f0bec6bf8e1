"""What a budget is: so many gigabytes, bits per weight, or what is left of a card's memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qsweep.base.errors import ConfigError
from qsweep.base.schema import build

KINDS = ("size_gb", "bpw", "vram_gb")
"""By what options a budget is given; one of them has to be."""
OPTIONS = (*KINDS, "context", "budget")
"""The options of a sweep file that are about budgets alone."""


@dataclass(frozen=True)
class Budget:
    """An upper bound: ``kind`` is one of :data:`KINDS`, ``amount`` in GB or bits per weight."""

    kind: str
    amount: float

    def __str__(self) -> str:
        return f"{self.kind}={self.amount:g}"


@dataclass(frozen=True)
class BudgetConfig:
    """How the answer is looked for; ``sweeps/budget.yaml`` says what each option is for."""

    neighbours: int | Literal["auto"] = "auto"
    fuse: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.fuse not in (True, False, "auto"):
            raise ConfigError(f"budget.fuse={self.fuse}: must be true, false or auto")
        if self.neighbours != "auto" and self.neighbours < 0:
            raise ConfigError(f"budget.neighbours={self.neighbours}: must be at least 0")

    def others(self, budgets: int) -> int:
        """How many mixes are made beside the best one of each of so many budgets."""
        # Of several budgets there are several mixes already.
        return int(budgets == 1) if self.neighbours == "auto" else self.neighbours


def read_budgets(given: Mapping[str, Sequence[Any]]) -> list[Budget]:
    """The budgets that a command line and a sweep file ask for, in ascending order.

    Args:
        given: By the names of :data:`KINDS`, values.

    Raises:
        ConfigError: None is given, or of several kinds; one is no positive number.
    """
    kinds = [kind for kind in KINDS if any(value is not None for value in given.get(kind, ()))]
    if not kinds:
        raise ConfigError(
            "budget: say how large the model may be: size_gb=1.9, bpw=4.25, or vram_gb=16 context=32768"
        )
    if len(kinds) > 1:
        raise ConfigError(f"budget: {' and '.join(kinds)} are given; one of them, please")
    return sorted(
        {Budget(kinds[0], _amount(kinds[0], value)) for value in given[kinds[0]]},
        key=lambda budget: budget.amount,
    )


def read_context(value: Any, *, needed: bool) -> int | None:
    """The tokens of the sequence that is to fit beside the model.

    Raises:
        ConfigError: It is no positive whole number; missing where a card's memory is the budget, or
            given where that is not.
    """
    if value is None:
        if needed:
            raise ConfigError("vram_gb: say for how many tokens of context, as in context=32768")
        return None
    if not needed:
        raise ConfigError(f"context={value}: counts with vram_gb alone; leave it out")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"context={value}: must be a number of tokens, from 1")
    return value


def budget_config(values: Any) -> BudgetConfig:
    """The settings in a sweep file's ``budget``. Raises ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"budget: {values!r} is no mapping of options")
    return build(BudgetConfig, dict(values), "budget")


def _amount(kind: str, value: Any) -> float:
    try:
        amount = float(value)
        if isinstance(value, bool) or not (0 < amount < math.inf):
            raise ValueError
    except (TypeError, ValueError):
        unit = "bits per weight" if kind == "bpw" else "GB"
        raise ConfigError(f"{kind}={value}: must be a number of {unit}, above 0") from None
    return amount
