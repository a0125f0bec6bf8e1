"""Reading a tracker, and adding files to a run that is there. Nothing is created or changed else."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qsweep.base.databases import sqlite_path
from qsweep.base.secrets import is_hidden
from qsweep.tracking.mlflow import views
from qsweep.tracking.mlflow.connection import Connection
from qsweep.tracking.mlflow.journal import Journal, TrackingTarget, current_target
from qsweep.tracking.settings import TrackerError


class Reader(Connection):
    """The runs of one experiment. All errors are TrackerErrors."""

    def __init__(self, target: TrackingTarget):
        database = sqlite_path(target.uri)
        if database is not None and not database.exists():
            raise TrackerError(f"no MLflow database {database}")
        super().__init__(target)
        with self._errors():
            found = self._mlflow.get_experiment_by_name(target.experiment)
        if found is None:
            raise TrackerError(f"no experiment {target.experiment!r} at {self.label}")
        self._experiment = str(found.experiment_id)
        self._viewed = views.TAG in found.tags

    @property
    def label(self) -> str:
        """The tracker and the experiment, as messages call them."""
        return self._target.label

    @property
    def page(self) -> str:
        """The experiment's runs within the UI, in qsweep's view once a sweep has stored it there."""
        return views.runs_page(self._experiment, stored=self._viewed)

    def parents(self) -> list[Any]:
        """The sweeps' runs, the newest first."""
        with self._errors():
            return list(self._search(self._experiment, "tags.`qsweep.sweep` != ''"))

    def children(self, parent: str) -> list[Any]:
        """The trials' runs of a sweep."""
        with self._errors():
            return list(self._search(self._experiment, f"tags.`mlflow.parentRunId` = '{parent}'"))

    def fetch(self, run_id: str, path: str, folder: Path) -> Path | None:
        """One of a run's files, downloaded into a folder; None if the run has no such file."""
        with contextlib.suppress(TrackerError), self._errors():
            found = Path(self._mlflow.download_artifacts(run_id, path, str(folder)))
            return found if found.is_file() else None
        return None

    def attach(self, run_id: str, files: Sequence[Path]) -> None:
        """Add files to a run's artifacts, replacing those of the same names."""
        with self._errors():
            for file in files:
                self._mlflow.log_artifact(run_id, str(file))


def log_files(directory: Path, files: Sequence[Path]) -> None:
    """Put files among the artifacts of a sweep's run; nothing where the sweep is not tracked.

    Raises:
        TrackerError: the tracker cannot be reached.
    """
    target = current_target(directory)
    if target is None:
        return
    run = Journal(directory, target).parent
    if run is None or is_hidden(target.uri):
        return
    Reader(target).attach(run, files)
