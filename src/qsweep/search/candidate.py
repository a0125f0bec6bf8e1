"""What a search needs of the world: which trials can exist, and what comes out of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qsweep.results.record import Record
from qsweep.search.fidelity import Estimate, Fidelity
from qsweep.search.space import Mix, Params


@dataclass(frozen=True)
class PlannedTrial:
    """A trial that can exist.

    Attributes:
        key: Tells trials apart.
        name: What it is called.
        method: gptq, awq, rtn, gguf.
        quant: Its composed group.
        overrides: What it is composed of, where that is not the combination itself.
        mix: What a mix was found to be.
    """

    key: str
    name: str
    method: str
    quant: Mapping[str, Any]
    overrides: Params | None = None
    mix: Mix | None = None


class TrialRunner(Protocol):
    """What a search needs of the world: what is possible, and what comes out."""

    @property
    def width(self) -> int:
        """How many trials run at once."""

    def plan(self, overrides: Params) -> PlannedTrial | None:
        """A trial before anything is measured; None if it cannot exist. Raises ConfigError.

        A mix may have the uniform artifacts made that it is chosen from.
        """

    def run(self, batch: Sequence[Params]) -> list[Record]:
        """Run trials; returns the record of each."""

    def reference(self, fidelity: Fidelity) -> Record | None:
        """The reference's record, once something has been measured at that fidelity."""


@dataclass(frozen=True)
class Candidate:
    """A combination that can exist and has not been claimed."""

    params: Params
    trial: PlannedTrial
    estimate: Estimate | None = None

    @property
    def overrides(self) -> Params:
        """What its trial is composed of."""
        return self.params if self.trial.overrides is None else self.trial.overrides
