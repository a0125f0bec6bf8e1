"""``ppl 1 %, mmlu 1 point, kld 0.02``: by which measures, and how much worse is still no worse."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from qsweep.base.errors import ConfigError

Unit = Literal["%", "nats", "points"]

# A capability's name may be of two words: long answers.
_PART = re.compile(
    r"(?P<measure>\S+(?:\s+\S+)*?)\s+(?P<amount>[-+]?[\d.]+(?:e[-+]?\d+)?)\s*(?P<unit>%|[a-z]*)",
    re.IGNORECASE,
)
_UNITS: dict[str, Unit] = {
    **{"%": "%", "percent": "%", "nat": "nats", "nats": "nats"},
    **{"point": "points", "points": "points"},
}
EXAMPLE = "--margin 'ppl 1 %, kld 0.02, mmlu 1 point'"


@dataclass(frozen=True)
class Margin:
    """How much worse by one measure is still no worse.

    Attributes:
        measure: As it was typed.
        amount: In the unit, 0 or more.
        unit: What it is typed in; None where nothing was.
    """

    measure: str
    amount: float
    unit: Unit | None

    def require(self, unit: Unit) -> "Margin":
        """The same in the measure's own unit.

        Raises:
            ConfigError: It was typed in none (nats may be left out), or in another.
        """
        if self.unit == unit or (self.unit is None and unit == "nats"):
            return Margin(self.measure, self.amount, unit)
        given = "of no unit" if self.unit is None else f"in {self.unit}"
        right = {"%": "1 %", "points": "1 point", "nats": "0.02"}[unit]
        raise ConfigError(
            f"--margin {self.measure}: is {given}; give {unit}: {self.measure} {right}"
        )

    @property
    def loss(self) -> float:
        """On the scale of losses: ln of a ratio, nats, or a share of answers."""
        if self.unit == "%":
            return math.log1p(self.amount / 100)
        return self.amount / 100 if self.unit == "points" else self.amount

    def __str__(self) -> str:
        if self.unit == "points":
            return f"{self.amount:g} point{'' if self.amount == 1 else 's'}"
        return f"{self.amount:g} {self.unit}" if self.unit else f"{self.amount:g}"


def parse_margins(text: str) -> list[Margin]:
    """The margins of a text, each measure once.

    Raises:
        ConfigError: Some part is not ``MEASURE NUMBER UNIT``, a number is below 0, or a measure is
            named twice.
    """
    found: dict[str, Margin] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        matched = _PART.fullmatch(part)
        try:
            amount = float(matched["amount"]) if matched else math.nan
        except ValueError:
            amount = math.nan
        unit = matched["unit"].lower() if matched else ""
        if matched is None or not math.isfinite(amount) or (unit and unit not in _UNITS):
            raise ConfigError(
                f"--margin: {part!r} is no measure with a number and a unit, as in {EXAMPLE}"
            )
        if amount < 0:
            raise ConfigError(
                f"--margin {part}: below 0; a margin is how much worse may be, from 0"
            )
        measure = " ".join(matched["measure"].split())
        if measure in found:
            raise ConfigError(f"--margin {measure}: is named twice; name it once")
        found[measure] = Margin(measure, amount, _UNITS.get(unit))
    if not found:
        raise ConfigError(f"--margin: names no measure; for example {EXAMPLE}")
    return list(found.values())
