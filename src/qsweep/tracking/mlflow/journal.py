"""``tracking.json``: what of a sweep is logged where; and the lock that keeps loggers apart."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from qsweep.base.files import write_json
from qsweep.base.locks import FileLock
from qsweep.base.typed_json import convert_or_none
from qsweep.tracking.identity import FILE, is_copied, mapping_or_empty, read_notes, sweep_uid
from qsweep.tracking.settings import (
    TrackingConfig,
    is_server,
    public_uri,
    resolved_uri,
    server_page,
)


@dataclass(frozen=True)
class TrackingTarget:
    """A tracker and an experiment in it."""

    uri: str
    experiment: str

    @classmethod
    def of(cls, config: TrackingConfig, outputs: Path) -> "TrackingTarget":
        """What a configuration means; the default tracker lies in ``outputs``."""
        return cls(resolved_uri(config.uri, outputs), config.experiment)

    @property
    def label(self) -> str:
        """What files and messages call it: no password in it."""
        return f"{public_uri(self.uri)} ({self.experiment})"


@dataclass(frozen=True)
class _LoggedTrial:
    run_id: str
    record_sha256: str


@dataclass
class _TargetLog:
    """What is logged at one target."""

    runs: dict[str, _LoggedTrial] = field(default_factory=dict)
    parent: str | None = None
    summary: str | None = None
    page: str | None = None


@dataclass
class _Notes:
    """The content of ``tracking.json``: by the label of a target, what is logged there."""

    uid: str
    name: str
    logs: dict[str, _TargetLog] = field(default_factory=dict)
    complete: bool | None = None
    current: TrackingTarget | None = None
    version: int = 1


class Journal:
    """What a sweep's ``tracking.json`` says, for one tracker at a time.

    It saves asking the tracker and decides nothing: marks that a crash lost, or a whole file that
    is gone or damaged, are made again from what the tracker holds. Threads may share a journal;
    processes are kept apart by :func:`logger_lock`.
    """

    def __init__(self, directory: Path, target: TrackingTarget):
        self._path = directory / FILE
        self._notes = _read(directory)
        self._target = target
        self._guard = threading.Lock()
        self._log = self._notes.logs.setdefault(target.label, _TargetLog())

    @property
    def uid(self) -> str:
        """The sweep's identity in a tracker that many people share."""
        return self._notes.uid

    @property
    def parent(self) -> str | None:
        """The parent run's id."""
        return self._log.parent

    @property
    def complete(self) -> bool | None:
        """Whether the sweep came to its end, or was killed; None if that is not known."""
        return self._notes.complete

    @property
    def summary(self) -> str | None:
        """Fingerprint of the records that the parent's summary was made of; None: not final."""
        return self._log.summary

    def run(self, key: str) -> tuple[str | None, str | None]:
        """A trial's run id and the fingerprint of the record logged in it."""
        trial = self._log.runs.get(key)
        return (trial.run_id, trial.record_sha256) if trial else (None, None)

    def open(self, *, complete: bool) -> None:
        """Note that the sweep is under way (or over) and logs here."""
        with self._change():
            self._notes.complete = complete
            self._notes.current = TrackingTarget(
                public_uri(self._target.uri), self._target.experiment
            )

    def set_parent(self, run_id: str, uid: str) -> None:
        """Note the parent run, and the identity that it has in the tracker."""
        with self._change():
            self._notes.uid = uid
            self._log.parent, self._log.summary = run_id, None

    def rebuild(self, held: Mapping[str, tuple[str, str]], *, complete: bool | None) -> None:
        """Put what the tracker holds in place of all marks.

        Args:
            held: run id and fingerprint of the record by a trial's key.
            complete: whether the tracker says that the sweep came to its end.
        """
        with self._change():
            if self._notes.complete is None:
                self._notes.complete = complete
            self._log.runs = {key: _LoggedTrial(*logged) for key, logged in held.items()}

    def mark(self, key: str, run_id: str, record_sha256: str) -> None:
        """Note that a trial's record is logged, wholly."""
        with self._change():
            self._log.runs[key] = _LoggedTrial(run_id, record_sha256)

    def forget(self) -> None:
        """Forget what was logged: the tracker is not the one it was."""
        self._log = self._notes.logs[self._target.label] = _TargetLog()

    def set_summary(self, summary: str) -> None:
        """Note that the parent's summary is logged and the parent has ended."""
        with self._change():
            self._log.summary = summary

    def set_page(self, page: str) -> None:
        """Note where in the UI the sweep's runs are."""
        with self._change():
            self._log.page = page

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        with self._guard:
            yield
            write_json(self._path, asdict(self._notes))


def current_target(directory: Path) -> TrackingTarget | None:
    """Where a sweep was last logged, the password of its URI left out; None if it never was."""
    return _read(directory).current


def ui_page(config: TrackingConfig, directory: Path, outputs: Path) -> str | None:
    """The page of the UI with qsweep's columns and charts, once a sweep is logged; else None.

    Where the tracker is no server, the host is the one that ``mlflow ui`` listens on by default.
    """
    target = TrackingTarget.of(config, outputs)
    page = _read(directory).logs.get(target.label, _TargetLog()).page
    host = server_page(target.uri) if is_server(target.uri) else "http://127.0.0.1:5000"
    return f"{host}/{page}" if page else None


def is_settled(directory: Path, target: TrackingTarget) -> bool:
    """Whether nothing of a sweep is missing at ``target``, as far as its own notes say."""
    notes = _read(directory)
    if notes.current is None or notes.current.label != target.label:
        return True
    return bool(notes.logs.get(target.label, _TargetLog()).summary)


def logger_lock(directory: Path) -> FileLock:
    """Held by the one process that may log a sweep; the system drops a dead process's."""
    return FileLock(directory / ".tracking.lock", timeout_s=0)


def _read(directory: Path) -> _Notes:
    """The notes of a sweep, without whatever in them is damaged, or another sweep's."""
    stored, notes = read_notes(directory / FILE), _Notes(sweep_uid(directory), directory.name)
    if is_copied(directory, stored):
        return notes
    notes.current = convert_or_none(TrackingTarget, stored.get("current"))
    if stored.get("uid") != notes.uid:
        return notes
    notes.complete = convert_or_none(bool, stored.get("complete"))
    for label, log in mapping_or_empty(stored.get("logs")).items():
        if isinstance(log, dict) and "runs" in log:
            found = convert_or_none(_TargetLog, log)
            if found is not None:  # else the tracker is asked
                notes.logs[label] = found
    return notes
