"""Sweeps as an MLflow tracker holds them: every trial's run carries its record."""

import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qsweep.base.errors import QsweepError
from qsweep.base.scratch import ScratchFolder
from qsweep.base.secrets import hidden_tree
from qsweep.results.html.data import SweepData
from qsweep.results.record import Measurement, Record
from qsweep.results.record_file import without_damage
from qsweep.results.sources import require_known
from qsweep.text.windows import preset_key
from qsweep.tracking.mlflow.journal import TrackingTarget
from qsweep.tracking.mlflow.reader import Reader
from qsweep.tracking.settings import TrackingConfig

_CONNECTIONS = 8


class TrackedSweeps:
    """The sweeps of one experiment of a tracker.

    Raises:
        QsweepError: the tracker cannot be reached, or holds no such experiment or sweep.
    """

    def __init__(self, uri: str, experiment: str, outputs: Path):
        self._reader = Reader(
            TrackingTarget.of(TrackingConfig(uri=uri, experiment=experiment), outputs)
        )
        self._runs: dict[str, str] = {}
        self._parents: dict[str, str] = {}
        self._folder = ScratchFolder()

    def sweeps(self, names: Sequence[str] = ()) -> list[SweepData]:
        """The named sweeps, or the newest one. Of several runs of a name, the newest counts."""
        known = self._known()
        where = self._reader.label
        if not known:
            raise QsweepError(f"no sweeps in {where}; --experiment names another")
        require_known(names, known, where)
        chosen = dict.fromkeys(names) or list(known)[:1]
        return [self._sweep(name, known[name]) for name in chosen]

    @property
    def names(self) -> list[str]:
        """The names of all sweeps, the newest first."""
        return list(self._known())

    def _known(self) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for run in self._reader.parents():
            known.setdefault(run.data.tags["sweep"], run)
        return known

    def arrays(self, record: Record, measurement: Measurement) -> Path | None:
        """A measurement's per-token arrays, fetched from the trial's run."""
        run = self._runs.get((record.draws or (record,))[0].key)
        name = measurement.preset
        for preset in dict.fromkeys((name, preset_key(name))):  # an older version's run
            place = f"measurements/{measurement.corpus}-{preset}/arrays.safetensors"
            found = self._reader.fetch(run, place, Path(self._folder.name)) if run else None
            if found is not None:
                return found
        return None

    def log(self, names: Sequence[str], files: Sequence[Path]) -> None:
        """Put a report's files among the artifacts of the sweeps' runs."""
        for name in names:
            self._reader.attach(self._parents[name], files)

    def _sweep(self, name: str, parent: Any) -> SweepData:
        self._parents[name] = parent.info.run_id
        runs = list(self._reader.children(parent.info.run_id))
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            found = list(pool.map(self._record, runs))
        records = []
        for run, record in zip(runs, found, strict=True):
            if record is not None and record.draws is None:  # else made of others that are here
                self._runs[record.key] = run.info.run_id
                records.append(record)
        missing = sum(record is None for record in found)
        problems = [f"{missing} of {len(runs)} runs have no readable record"] if missing else []
        return SweepData(name, parent.data.tags.get("command", ""), records, problems)

    def _record(self, run: Any) -> Record | None:
        with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            file = self._reader.fetch(run.info.run_id, "record.json", Path(folder))
            try:
                content = json.loads(file.read_text(encoding="utf-8")) if file else None
                return without_damage(hidden_tree(content))
            except (OSError, ValueError):
                return None
