"""Reading a tracker, and adding files to a run that is there. Nothing is created or changed else."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qsweep.base.databases import sqlite_path
from qsweep.base.secrets import is_hidden
from qsweep.tracking.mlflow import views
from qsweep.tracking.mlflow.calls import pages, tracker_errors
from qsweep.tracking.mlflow.connection import connect
from qsweep.tracking.mlflow.journal import Journal, Place, current_place
from qsweep.tracking.settings import TrackerError, TrackingConfig, resolved_uri


class Reader:
    """The runs of one experiment. All errors are TrackerErrors."""

    def __init__(self, place: Place):
        self._place = place
        database = sqlite_path(place.uri)
        if database is not None and not database.exists():
            raise TrackerError(f"no MLflow database {database}")
        with self._errors():
            self._mlflow = connect(place.uri)
            found = self._mlflow.get_experiment_by_name(place.experiment)
        if found is None:
            raise TrackerError(f"no experiment {place.experiment!r} at {self.label}")
        self._experiment = str(found.experiment_id)
        self._viewed = views.TAG in found.tags

    @property
    def label(self) -> str:
        """The tracker and the experiment, as messages call them."""
        return self._place.label

    @property
    def page(self) -> str:
        """The experiment's runs within the UI, in qsweep's view once a sweep has stored it there."""
        return views.runs_page(self._experiment, stored=self._viewed)

    def parents(self) -> list[Any]:
        """The sweeps' runs, the newest first."""
        return self._search("tags.`qsweep.sweep` != ''")

    def children(self, parent: str) -> list[Any]:
        """The trials' runs of a sweep."""
        return self._search(f"tags.`mlflow.parentRunId` = '{parent}'")

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

    def _search(self, clause: str) -> list[Any]:
        with self._errors():
            return list(
                pages(
                    lambda token: self._mlflow.search_runs(
                        [self._experiment],
                        clause,
                        max_results=1000,
                        order_by=["attributes.start_time DESC"],
                        page_token=token,
                    )
                )
            )

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return tracker_errors(self._place.uri)


def tracker_place(uri: str, experiment: str, outputs: Path) -> Place:
    """The place that a URI given by the user means. Raises ConfigError."""
    config = TrackingConfig(uri=uri, experiment=experiment)
    return Place(resolved_uri(config.uri, outputs), config.experiment)


def log_files(directory: Path, outputs: Path, files: Sequence[Path]) -> None:
    """Put files among the artifacts of a sweep's run; nothing where the sweep is not tracked.

    Raises:
        TrackerError: the tracker cannot be reached.
    """
    place = current_place(directory)
    if place is None:
        return
    run = Journal(directory, place).parent
    if run is None or is_hidden(place.uri):
        return
    Reader(place).attach(run, files)
