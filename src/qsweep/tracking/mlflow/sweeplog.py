"""One sweep's log: what is missing in the tracker, and how it gets there. Raises, and blocks."""

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qsweep.base import typed_json
from qsweep.base.config_files import resolve_recorded
from qsweep.base.databases import sqlite_path
from qsweep.base.errors import QsweepError
from qsweep.base.locks import LockTimeout, owner_of
from qsweep.base.secrets import hidden
from qsweep.results import record_file
from qsweep.results.draws import pooled
from qsweep.results.labels import with_distinct_names
from qsweep.results.record import Record
from qsweep.tracking.identity import fingerprint
from qsweep.tracking.mlflow.client import Client
from qsweep.tracking.mlflow.journal import Journal, TrackingTarget, logger_lock
from qsweep.tracking.mlflow.runs import milliseconds, sweep_run, trial_run
from qsweep.tracking.settings import (
    RefusedError,
    TrackerError,
    TrackingConfig,
)

# For how many records a tracker is asked whether it knows them.
_ASKED = 5


class SweepLog:
    """Logs the records of the sweep in ``directory``, each once.

    Nothing is imported and nobody is asked until there is something to log.

    Raises:
        TrackerError: the tracker cannot be reached, or another process is logging this sweep.
    """

    def __init__(self, directory: Path, target: TrackingTarget, outputs: Path):
        self._directory = directory
        self._target = target
        self._outputs = outputs
        self._lock = logger_lock(directory)
        try:
            self._lock.acquire()
        except LockTimeout as error:
            owner = owner_of(self._lock.path) or "another process"
            raise TrackerError(f"sweep {directory.name} is being logged by {owner}") from error
        except QsweepError as error:
            raise TrackerError(str(error)) from error
        self._client: Client | None = None
        self._parent = ""
        self.journal = Journal(directory, target)
        database = sqlite_path(target.uri)
        if database is not None and not database.exists():
            self.journal.forget()

    @property
    def connected(self) -> bool:
        """Whether the tracker was reached, and shows this sweep as running."""
        return self._client is not None

    def is_logged(self, record: Record) -> bool:
        """Whether the tracker holds this record, as far as the journal knows."""
        return self.journal.run(record.key)[1] == fingerprint(record)

    def connect(self, name: str) -> bool:
        """Reach the tracker and create the parent run, if that has not been done.

        Returns whether the tracker turned out not to hold any more what was logged there.
        """
        if self._client is not None:
            return False
        client = Client(self._target, self._outputs)
        started = milliseconds(_sweep_facts(self._directory).started)
        noted, uid = self.journal.parent, self.journal.uid
        known = noted or client.find_sweep(uid, name, _fingerprints(self._directory))
        self._parent = client.parent(uid, name, started, known)
        emptied = noted not in (None, self._parent)
        if noted != self._parent:  # what is noted here is not what is there
            held, (theirs, complete) = (
                client.children(self._parent, known),
                client.state_of(self._parent),
            )
            self.journal.rebuild(held, complete=complete)
            uid = theirs or uid
        client.reopen(self._parent)
        self.journal.set_parent(self._parent, uid)
        self.journal.set_page(client.store_view())
        self._client = client
        return emptied

    def log_missing(self, records: Sequence[Record]) -> tuple[list[Record], dict[str, str]]:
        """Log what is not logged yet; returns what was logged now, and what was refused, by key.

        A record that the tracker does not take keeps no other out.
        """
        if all(self.is_logged(record) for record in records):
            return [], {}
        if self.connect(records[0].sweep or self._directory.name):
            everything = [*read_records(self._directory), *records]
            records = list({record.key: record for record in everything}.values())
        logged: list[Record] = []
        refused: dict[str, str] = {}
        for record in records:
            if self.is_logged(record):
                continue
            try:
                self._log(record)
                logged.append(record)
            except RefusedError as error:
                refused[record.key] = f"{record.name} is not logged: {error}"
        return logged, refused

    def finish(
        self, name: str, command: str, records: Sequence[Record], *, settled: bool = True
    ) -> None:
        """Log the sweep's own figures and end its run, unless that has been done.

        Args:
            name: The sweep's.
            command: What started it.
            records: All of its trials'.
            settled: False leaves a note that something is still missing.
        """
        named = with_distinct_names(pooled(records))
        settings = [record for record in named if record.draws is not None]
        everything = [*records, *settings]
        if self.journal.summary == _summary(everything, bool(self.journal.complete)):
            return
        if self.connect(name):
            self.log_missing(records)
        assert self._client is not None
        for setting in settings:
            if not self.is_logged(setting):
                self._log(setting)
        self._name_apart(records)
        complete = bool(self.journal.complete)
        run = sweep_run(name, command, records, self._directory, complete=complete)
        self._client.write(self._parent, run, again=False)
        if settled:
            self.journal.set_summary(_summary(everything, complete))

    def _name_apart(self, records: Sequence[Record]) -> None:
        # What tells trials of one name apart is known only when all of them are there.
        assert self._client is not None
        for record, named in zip(records, with_distinct_names(records), strict=True):
            run_id, _ = self.journal.run(record.key)
            if run_id is not None and named.name != record.name:
                self._client.rename(run_id, named.name)

    def close(self) -> None:
        """Let others log this sweep."""
        self._lock.release()

    def _log(self, record: Record) -> None:
        assert self._client is not None
        run = trial_run(record)
        known, _ = self.journal.run(record.key)
        run_id, again = self._client.child(self._parent, record.key, run, known)
        self._client.write(run_id, run, again=again)
        self._client.seal(run_id, fingerprint(record))
        self.journal.mark(record.key, run_id, fingerprint(record))


def read_records(directory: Path) -> list[Record]:
    """The records of a sweep that are on disk; what is not readable as one is left out."""
    records = []
    for _, record in record_file.read_records(directory):
        if record is not None:
            records.append(replace(record, sweep=record.sweep or directory.name))
    return records


def recorded_target(directory: Path, outputs: Path) -> TrackingTarget | None:
    """Where the first readable record says that it was to be logged; None: nowhere.

    A password that was left out, or is no longer in the environment, stays hidden.
    """
    for record in read_records(directory):
        config = dict(record.config)
        tracking = config.get("tracking")
        if not isinstance(tracking, dict) or tracking.get("enabled") is not True:
            continue
        uri, experiment = (
            resolve_recorded(config, f"tracking.{name}") or tracking.get(name)
            for name in ("uri", "experiment")
        )
        with contextlib.suppress(QsweepError, TypeError, AttributeError):
            chosen = TrackingConfig(uri=uri, experiment=str(experiment))
            return TrackingTarget.of(chosen, outputs)
    return None


def sync_sweep(directory: Path, target: TrackingTarget, outputs: Path) -> int:
    """Log what is missing of a sweep that no process is running; returns how many trials that was.

    Raises:
        TrackerError: the tracker cannot be reached or refuses a trial, or the sweep is running.
    """
    records = read_records(directory)
    log = SweepLog(directory, target, outputs)
    try:
        logged, refused = log.log_missing(records)
        facts = _sweep_facts(directory)
        log.finish(facts.name, hidden(facts.command), records, settled=not refused)
    finally:
        log.close()
    if refused:
        raise TrackerError("; ".join(refused.values()))
    return len(logged)


@dataclass(frozen=True)
class _SweepFacts:
    """What ``sweep.json`` says of a sweep; ``started`` is an ISO 8601 moment."""

    name: str
    command: str = ""
    started: str = ""


def _sweep_facts(directory: Path) -> _SweepFacts:
    try:
        return typed_json.read(_SweepFacts, directory / "sweep.json", unknown="ignore")
    except (OSError, ValueError):
        return _SweepFacts(directory.name)


def _fingerprints(directory: Path) -> dict[str, str]:
    """By key, of the records by which a tracker may know a sweep: some, since any will do."""
    return {record.key: fingerprint(record) for record in read_records(directory)[:_ASKED]}


def _summary(records: Iterable[Record], complete: bool) -> str:
    parts = sorted(f"{record.key} {fingerprint(record)}" for record in records)
    return hashlib.sha256("\n".join([str(complete), *parts]).encode()).hexdigest()
