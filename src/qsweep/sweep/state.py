"""A sweep, and what is known of its trials so far."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qsweep.base.files import shown
from qsweep.results.record import Record
from qsweep.results.rows import counts
from qsweep.sweep.config import SweepConfig
from qsweep.tracking import SweepFolder

if TYPE_CHECKING:
    import pandas


@dataclass(repr=False)
class Sweep:
    """A sweep and its results.

    Attributes:
        config: What concerns the sweep as a whole.
        name: Its name, also its folder's.
        command: The command line that runs it.
        records: What became of each trial, by key.
    """

    config: SweepConfig
    name: str
    command: str
    records: dict[str, Record] = field(default_factory=dict)
    screening: dict[str, Record] = field(default_factory=dict)
    """What a search measured at lower fidelity: kept apart from results."""
    asked: list[str] = field(default_factory=list)
    """Keys of the configurations that were asked for, in their order."""

    @property
    def directory(self) -> Path:
        """The sweep's folder."""
        return self.config.outputs_dir / "sweeps" / self.name

    @property
    def folder(self) -> SweepFolder:
        """What a tracker is told of it."""
        return SweepFolder(self.name, self.command, self.directory, self.config.outputs_dir)

    def log_of(self, key: str) -> Path:
        """Where a job's output goes."""
        return self.directory / "logs" / f"{key}.log"

    @property
    def everything(self) -> dict[str, Record]:
        """The records of whatever fidelity, by key."""
        return self.records | self.screening

    @property
    def shown(self) -> list[Record]:
        """The results, and what failed at lower fidelity: a search never came to try that in full."""
        failed = [r for r in self.screening.values() if r.status == "failed"]
        return [*self.records.values(), *failed]

    def table(self) -> "pandas.DataFrame":
        """Its rows, as in ``results.csv``: one per trial, corpus and preset, best first."""
        from qsweep.results.frame import frame

        return frame(self.shown)

    def __repr__(self) -> str:
        found = ", ".join(f"{n} {status}" for status, n in counts(self.shown).items() if n)
        return f"Sweep({self.name!r}, {found or 'no trials'}, in {shown(self.directory)})"

    @property
    def exit_code(self) -> int:
        """0 unless a trial failed, or nothing finished though something was asked for."""
        failed = [r for r in self.shown if r.status == "failed"]
        asked = [r for r in self.records.values() if not r.implied]
        none_finished = not any(r.finished for r in asked)
        # What only a check wanted is told among its reasons, and spoils nothing that was asked for.
        return int(none_finished or any(r.reference or not r.implied for r in failed))
