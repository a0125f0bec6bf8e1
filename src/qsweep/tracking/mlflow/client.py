"""The MLflow client: one connection, and what qsweep does with it. All errors are TrackerErrors."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.databases import (
    is_database,
    sqlite_path,
)
from qsweep.base.numbers import one_line
from qsweep.base.scratch import ScratchFolder
from qsweep.tracking.identity import fingerprint
from qsweep.tracking.mlflow import views
from qsweep.tracking.mlflow.calls import pages, tracker_errors
from qsweep.tracking.mlflow.connection import (
    connect,
)
from qsweep.tracking.mlflow.journal import Place
from qsweep.tracking.mlflow.runs import Run
from qsweep.tracking.settings import TrackerError

if TYPE_CHECKING:
    pass

# Larger files stay where they are; the run says where.
MAX_FILE_BYTES = 64 * 2**20
# Tells the UI that runs, charts and columns come first, not the pages for traces of conversations.
# MLflow 3.10 to 3.17 ask the browser's last choice instead, so addresses name it too (views.py).
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
# The fingerprint of the record that a trial's run holds, set when all of it is there.
_RECORD = "qsweep.record"
# Runs of one trial that are looked at: other people's of the same name may be among them.
_LOOKED_AT = 20
_BATCH = {"params": 100, "tags": 100, "metrics": 800}
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class Client:
    """A connection to one experiment of one tracker, made (store and experiment too) at once.

    Raises:
        TrackerError: one line; the constructor and every method.
    """

    def __init__(self, place: Place, outputs: Path):
        self._place = place
        with self._errors():
            self._mlflow = connect(place.uri)
            self._experiment = self._find_experiment(outputs)

    def find_sweep(self, uid: str, name: str, records: Mapping[str, str]) -> str | None:
        """The id of a sweep's run, which may have been deleted; None if the tracker has none.

        Its tag is ``uid``. ``records`` are fingerprints of some records by key: no two sweeps have
        one in common, so a trial's run that holds one tells the sweep's where ``uid`` was lost.
        """
        with self._errors():
            return self._find({"qsweep.sweep": uid}) or self._parent_holding(name, records)

    def parent(self, uid: str, name: str, started_ms: int | None, known: str | None) -> str:
        """The sweep's run, found by ``known`` id or by its tag, else created."""
        with self._errors():
            if known and self._is_active(known):
                return known
            tags = {"qsweep.sweep": uid, "sweep": name}
            return self._find({"qsweep.sweep": uid}) or self._create(name, started_ms, tags)

    def state_of(self, parent: str) -> tuple[str | None, bool | None]:
        """The identity that a sweep's run has, and whether the sweep came to its end; None: unsaid."""
        with self._errors():
            tags = self._mlflow.get_run(parent).data.tags
            status = tags.get("status")
            return tags.get("qsweep.sweep"), None if status is None else status == "finished"

    def children(self, parent: str, earlier: str | None) -> dict[str, tuple[str, str]]:
        """What the tracker holds of a sweep: run id and record's fingerprint by a trial's key.

        Runs below ``earlier``, a parent that is gone, are put below ``parent``. Runs that may be
        half-logged are left out; :meth:`child` finds them.
        """
        held: dict[str, tuple[str, str]] = {}
        with self._errors():
            for place in dict.fromkeys([parent, earlier or parent]):
                for run in self._search({"mlflow.parentRunId": place}):
                    tags, run_id = run.data.tags, str(run.info.run_id)
                    if place != parent:
                        self._mlflow.set_tag(run_id, "mlflow.parentRunId", parent)
                    if "qsweep.key" in tags and _RECORD in tags:
                        held.setdefault(tags["qsweep.key"], (run_id, tags[_RECORD]))
        return held

    def child(self, parent: str, key: str, run: Run, known: str | None) -> tuple[str, bool]:
        """A trial's run below ``parent``, and whether it held this trial's record before."""
        with self._errors():
            if known and self._is_active(known):
                return known, True
            tags = {"qsweep.key": key, "mlflow.parentRunId": parent}
            return self._find(tags) or self._create(run.name, run.started_ms, tags), False

    def seal(self, run_id: str, record_sha256: str) -> None:
        """Say in a trial's run that the record of this fingerprint is in it, wholly."""
        with self._errors():
            self._mlflow.set_tag(run_id, _RECORD, record_sha256)

    def write(self, run_id: str, run: Run, *, again: bool) -> None:
        """Log all of a run and end it. Repeating this changes nothing but what has changed.

        ``again``: the run holds an older record; its figures must win over the older ones.
        """
        with self._errors():
            now = round(time.time() * 1000)
            tags = dict(run.tags)
            params = dict(run.params)
            before = self._mlflow.get_run(run_id).data.params
            changed = {k: v for k, v in params.items() if before.get(k, v) != v}
            if changed:  # MLflow refuses to change a param
                said = (f"{k}: {before[k]} -> {v}" for k, v in sorted(changed.items()))
                tags["changed_params"] = one_line("; ".join(said))[:5000]
            params = {k: v for k, v in params.items() if k not in before}
            self._log_batches(run_id, run, params, tags, None if again else run.ended_ms or now)
            self._log_artifacts(run_id, run)
            self._mlflow.set_terminated(run_id, run.status, run.ended_ms or now)

    def show(self) -> str:
        """Store qsweep's view of the experiment; returns its address within the UI."""
        with self._errors():
            self._tag_experiment(self._experiment, views.TAG, views.view())
        return views.runs_page(self._experiment)

    def reopen(self, run_id: str) -> None:
        """Show a run as running again."""
        with self._errors():
            self._mlflow.update_run(run_id, status="RUNNING")

    def rename(self, run_id: str, name: str) -> None:
        """Call a run by another name."""
        with self._errors():
            self._mlflow.update_run(run_id, name=name)

    def _log_batches(
        self,
        run_id: str,
        run: Run,
        params: dict[str, str],
        tags: dict[str, str],
        time_ms: int | None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        # Equal points (same time, step, value) are stored once, so a repeated write adds none.
        now = round(time.time() * 1000)
        metrics = []
        for point in run.metrics:
            moment = now if time_ms is None else point.time_ms or time_ms
            metrics.append(Metric(point.name, point.value, moment, point.step))
        entities: dict[str, list[Any]] = {
            "params": [Param(k, v) for k, v in params.items()],
            "tags": [RunTag(k, v) for k, v in tags.items()],
            "metrics": metrics,
        }
        while any(entities.values()):
            batch = {kind: items[: _BATCH[kind]] for kind, items in entities.items()}
            entities = {kind: items[_BATCH[kind] :] for kind, items in entities.items()}
            self._mlflow.log_batch(run_id, **batch)  # type: ignore[arg-type]

    def _log_artifacts(self, run_id: str, run: Run) -> None:
        with ScratchFolder() as folder:
            staged = Path(folder)
            for name, text in run.texts.items():
                (staged / name).write_text(text, encoding="utf-8")
            for place, source in run.files.items():
                _stage(source, staged / place)
            self._mlflow.log_artifacts(run_id, folder)

    def _find_experiment(self, outputs: Path) -> str:
        from mlflow.exceptions import MlflowException

        name = self._place.experiment
        found = self._mlflow.get_experiment_by_name(name)
        if found is None:
            # A database has no room for files: they lie beside it. A server decides for itself.
            local = is_database(self._place.uri)
            beside = (sqlite_path(self._place.uri) or outputs / "mlflow.db").parent / "mlruns"
            try:
                location = beside.as_uri() if local else None
                return str(self._mlflow.create_experiment(name, location, tags=_EXPERIMENT_TAGS))
            except MlflowException as error:  # another sweep was quicker
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._mlflow.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise TrackerError(
                f"MLflow's experiment {name!r} is deleted: restore it, or set tracking.experiment"
            )
        for tag, value in _EXPERIMENT_TAGS.items():
            if tag not in found.tags:  # somebody else made it; what they chose stays
                self._tag_experiment(found.experiment_id, tag, value)
        return str(found.experiment_id)

    def _tag_experiment(self, experiment: str, tag: str, value: str) -> None:
        try:
            self._mlflow.set_experiment_tag(experiment, tag, value)
        except Exception:  # another sweep put it there at this moment: now it is changed, not added
            self._mlflow.set_experiment_tag(experiment, tag, value)

    def _find(self, tags: dict[str, str]) -> str | None:
        run = next(iter(self._search(tags)), None)
        return None if run is None else str(run.info.run_id)

    def _search(self, tags: dict[str, str]) -> Iterator[Any]:
        marks = {value: '"' if "'" in value else "'" for value in tags.values()}
        clauses = [
            f"tags.`{name}` = {marks[value]}{value}{marks[value]}"
            for name, value in tags.items()
            if marks[value] not in value  # with both, no query can say it
        ]
        found = pages(
            lambda token: self._mlflow.search_runs(
                [self._experiment], " and ".join(clauses), page_token=token
            )
        )
        return (run for run in found if tags.items() <= run.data.tags.items())

    def _parent_holding(self, name: str, records: Mapping[str, str]) -> str | None:
        for key, sha256 in records.items():
            for run in islice(self._search({"qsweep.key": key, "sweep": name}), _LOOKED_AT):
                tags = run.data.tags
                held = tags.get(_RECORD) or self._record_in(run.info.run_id)
                if held == sha256 and "mlflow.parentRunId" in tags:
                    return str(tags["mlflow.parentRunId"])
        return None

    def _record_in(self, run_id: str) -> str | None:
        # Of a run without a seal: one that was left half-logged, or that an older version made.
        with contextlib.suppress(Exception), ScratchFolder() as folder:
            file = Path(self._mlflow.download_artifacts(run_id, "record.json", folder))
            return fingerprint(json.loads(file.read_text(encoding="utf-8")))
        return None

    def _create(self, name: str, started_ms: int | None, tags: dict[str, str]) -> str:
        more = {"mlflow.user": _user(), "mlflow.source.type": "LOCAL"}
        run = self._mlflow.create_run(
            self._experiment, start_time=started_ms, tags={**more, **tags}, run_name=name
        )
        return str(run.info.run_id)

    def _is_active(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            info = self._mlflow.get_run(run_id).info
        except MlflowException as error:
            if error.error_code in _GONE:
                return False
            raise
        return bool(info.lifecycle_stage == "active" and info.experiment_id == self._experiment)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return tracker_errors(self._place.uri)


def _stage(source: Path, target: Path) -> None:
    # What has vanished since, such as a log that was cleaned up, is no reason not to log the rest.
    if source.is_dir():
        for item in sorted(source.iterdir()):
            _stage(item, target / item.name)
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_size > MAX_FILE_BYTES:
            note = f"{source.stat().st_size} bytes, left at {source}\n"
            target.with_name(f"{target.name}.txt").write_text(note, encoding="utf-8")
        else:
            target.symlink_to(source.absolute())


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        return "unknown"
