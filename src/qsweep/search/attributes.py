"""What a study keeps of a trial beside its values, checked before anything relies on it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qsweep.base.contents import has_figures
from qsweep.base.typed_json import convert_or_none
from qsweep.search.fidelity import Estimate, Fidelity
from qsweep.search.space import Mix

# low, value, high; JSON of databases has no infinity, so None stands for what is not known.
_UNKNOWN = (-math.inf, math.nan, math.inf)


@dataclass(frozen=True)
class StoredEstimate:
    """An :class:`~qsweep.search.fidelity.Estimate` as JSON."""

    fidelity: Fidelity
    spans: dict[str, tuple[float | None, float | None, float | None]]

    def restored(self) -> Estimate:
        """The estimate, its infinities again what they were."""
        spans: Any = {
            name: tuple(u if v is None else v for v, u in zip(span, _UNKNOWN, strict=True))
            for name, span in self.spans.items()
        }
        return Estimate(self.fidelity, spans)


@dataclass(frozen=True)
class _Finding:
    record: str
    params: dict[str, Any]
    size_gb: float
    bpw: float | None
    verdict: str | None
    runtimes: list[str]
    serves: bool
    artifact: str | None
    host: str


@dataclass(frozen=True)
class Attributes:
    """A trial's attributes; each may be absent, as a trial has them one after the other."""

    key: str = ""
    name: str = ""
    owner: str = ""
    params: dict[str, str] = field(default_factory=dict)
    reason: str | None = None
    outcome: StoredEstimate | None = None
    """At the highest fidelity below full."""
    finding: dict[str, Any] | None = None
    mix: Mix | None = None
    """What a fraction was found to be when the trial was claimed."""


def read_attributes(stored: Mapping[str, Any]) -> Attributes | None:
    """What Optuna stores of a trial; None where it is not of the types that a search gave it."""
    found = convert_or_none(Attributes, stored)
    if found is None or found.finding is None:
        return found
    whole = convert_or_none(_Finding, found.finding) is not None and has_figures(found.finding)
    return found if whole else None


def estimate_to_json(estimate: Estimate) -> dict[str, Any]:
    """An estimate as an attribute; :meth:`StoredEstimate.restored` is the way back."""
    spans = {
        name: [value if math.isfinite(value) else None for value in span]
        for name, span in estimate.spans.items()
    }
    return {"fidelity": estimate.fidelity, "spans": spans}
