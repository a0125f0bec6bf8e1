"""What is tested and by what it is, and the measures that there are of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qsweep.base.store import Store
from qsweep.evaluate.equivalence import Evidence
from qsweep.results.arrays import FindArrays
from qsweep.results.certificate.margins import Unit
from qsweep.results.record import Record, TaskScore

# Of windows, by their first word; a run with more as it is served has its name behind that.
WINDOWED = ("ppl", "kld", "top1")


@dataclass(frozen=True)
class Measure:
    """A loss by one measure.

    Attributes:
        name: As it was typed.
        unit: Of its margin and of its losses.
        evidence: What was measured.
        units: What ``evidence`` counts.
        figures: Both sides' own figures in words.
        measured_on: Text and preset, or the task.
        how: How many windows or samples were taken, where that was decided by looking at them.
        identity: What says that another measures the same: a fingerprint, or keys of results.
    """

    name: str
    unit: Unit
    evidence: Evidence
    units: Literal["windows", "samples"]
    figures: str
    measured_on: str
    identity: str
    how: str = ""


@dataclass(frozen=True)
class Sides:
    """A trial, and what it is tested against.

    Attributes:
        trial: What is certified.
        against: Another trial of the same model; None: the unquantized model.
        references: Records of the unquantized model, from all sweeps.
        store: Where tasks' results are.
        find: Tells where a measurement's arrays are.
    """

    trial: Record
    against: Record | None
    references: Sequence[Record]
    store: Store
    find: FindArrays

    @property
    def bases(self) -> Sequence[Record]:
        """The records that it may be compared with."""
        return self.references if self.against is None else [self.against]

    @property
    def base_name(self) -> str:
        """What it is compared with, in words."""
        if self.against is None:
            return f"the unquantized model {self.trial.model}"
        return self.against.name


def names(trial: Record) -> list[str]:
    """All measures that a trial may be certified by."""
    found: dict[str, None] = {}
    corpora = [measurement.corpus for measurement in trial.measurements]
    for measurement in trial.measurements:
        runs = ["", *(f"_{run.name}" for run in measurement.served or () if run.refused is None)]
        place = "" if measurement.primary else f":{measurement.corpus}"
        if place and corpora.count(measurement.corpus) > 1:
            place += f":{measurement.preset}"
        others = WINDOWED if "kld" in measurement.metrics or trial.reference else WINDOWED[:1]
        found |= {f"{kind}{run}{place}": None for run in runs for kind in others}
    run = [task for task in trial.tasks or () if task.score is not None]
    found |= {task.name: None for task in run if task.status == "finished"}
    able = [name for name in trial.capabilities or {} if telling(name, trial)]
    return [*found, *(name for name in able if name not in found)]


def telling(capability: str, trial: Record) -> list[TaskScore]:
    """The tasks whose answers tell of a capability: a perplexity is none, nor is chance."""
    found = (trial.capabilities or {})[capability]
    return [
        task
        for task in trial.tasks or ()
        if task.name in (found.tasks or ()) and task.name not in (found.at_chance or ())
        if task.status == "finished" and task.metric != "perplexity"
    ]


def again(record: Record) -> str:
    """What measures a record's trial again, and the reference with it."""
    return f"; {record.command} measures it again" if record.command else ""
