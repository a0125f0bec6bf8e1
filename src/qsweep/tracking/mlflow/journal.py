"""``tracking.json``: what of a sweep is logged where; and the lock that keeps loggers apart."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsweep.base.files import write_json
from qsweep.base.locks import FileLock
from qsweep.tracking.identity import FILE, is_copied, mapping_or_empty, read_notes, sweep_uid
from qsweep.tracking.settings import (
    TrackingConfig,
    is_server,
    public_uri,
    resolved_uri,
    server_page,
)


@dataclass(frozen=True)
class Place:
    """A tracker and an experiment in it."""

    uri: str
    experiment: str

    @property
    def label(self) -> str:
        """What files and messages call it: no password in it."""
        return f"{public_uri(self.uri)} ({self.experiment})"


class Journal:
    """What a sweep's ``tracking.json`` says, for one tracker at a time.

    It saves asking the tracker and decides nothing: marks that a crash lost, or a whole file that
    is gone or damaged, are made again from what the tracker holds. Threads may share a journal;
    processes are kept apart by :func:`logger_lock`.
    """

    def __init__(self, directory: Path, place: Place):
        self._path = directory / FILE
        self._content = _read(directory)
        self._place = place
        self._guard = threading.Lock()
        self._log: dict[str, Any] = self._content["logs"].setdefault(place.label, {})
        self._log.setdefault("runs", {})

    @property
    def uid(self) -> str:
        """The sweep's identity in a tracker that many people share."""
        return str(self._content["uid"])

    @property
    def parent(self) -> str | None:
        """The parent run's id."""
        return self._log.get("parent")

    @property
    def complete(self) -> bool | None:
        """Whether the sweep came to its end, or was killed; None if that is not known."""
        return self._content.get("complete")

    @property
    def summary(self) -> str | None:
        """Fingerprint of the records that the parent's summary was made of; None: not final."""
        return self._log.get("summary")

    def run(self, key: str) -> tuple[str | None, str | None]:
        """A trial's run id and the fingerprint of the record logged in it."""
        mark = self._log["runs"].get(key, {})
        return mark.get("run_id"), mark.get("record_sha256")

    def open(self, *, complete: bool) -> None:
        """Note that the sweep is under way (or over) and logs here."""
        current = {"uri": public_uri(self._place.uri), "experiment": self._place.experiment}
        with self._guard:
            self._content |= {"complete": complete, "current": current}
            self._write()

    def set_parent(self, run_id: str, uid: str) -> None:
        """Note the parent run, and the identity that it has in the tracker."""
        with self._guard:
            self._content["uid"] = uid
            self._log |= {"parent": run_id, "summary": None}
            self._write()

    def rebuild(self, held: Mapping[str, tuple[str, str]], *, complete: bool | None) -> None:
        """Put what the tracker holds in place of all marks.

        Args:
            held: run id and fingerprint of the record by a trial's key.
            complete: whether the tracker says that the sweep came to its end.
        """
        with self._guard:
            if self._content.get("complete") is None and complete is not None:
                self._content["complete"] = complete
            self._log["runs"] = {
                key: {"run_id": run_id, "record_sha256": sha256}
                for key, (run_id, sha256) in held.items()
            }
            self._write()

    def mark(self, key: str, run_id: str, record_sha256: str) -> None:
        """Note that a trial's record is logged, wholly."""
        with self._guard:
            self._log["runs"][key] = {"run_id": run_id, "record_sha256": record_sha256}
            self._write()

    def forget(self) -> None:
        """Forget what was logged: the tracker is not the one it was."""
        self._log.clear()
        self._log["runs"] = {}

    def set_summary(self, summary: str) -> None:
        """Note that the parent's summary is logged and the parent has ended."""
        with self._guard:
            self._log["summary"] = summary
            self._write()

    def set_page(self, page: str) -> None:
        """Note where in the UI the sweep's runs are."""
        with self._guard:
            self._log["page"] = page
            self._write()

    def _write(self) -> None:
        write_json(self._path, self._content)


def current_place(directory: Path) -> Place | None:
    """Where a sweep was last logged, the password of its URI left out; None if it never was."""
    current = _read(directory).get("current")
    return Place(**current) if current else None


def ui_page(config: TrackingConfig, directory: Path, outputs: Path) -> str | None:
    """The page of the UI with qsweep's columns and charts, once a sweep is logged; else None.

    Where the tracker is no server, the host is the one that ``mlflow ui`` listens on by default.
    """
    uri = resolved_uri(config.uri, outputs)
    label = Place(uri, config.experiment).label
    page = _read(directory)["logs"].get(label, {}).get("page")
    host = server_page(uri) if is_server(uri) else "http://127.0.0.1:5000"
    return f"{host}/{page}" if page else None


def is_settled(directory: Path, place: Place) -> bool:
    """Whether nothing of a sweep is missing at ``place``, as far as its own notes say."""
    current = current_place(directory)
    if current is None or current.label != place.label:
        return True
    return bool(_read(directory)["logs"].get(place.label, {}).get("summary"))


def logger_lock(directory: Path) -> FileLock:
    """Held by the one process that may log a sweep; the system drops a dead process's."""
    return FileLock(directory / ".tracking.lock", timeout_s=0)


def _read(directory: Path) -> dict[str, Any]:
    """The notes of a sweep, without whatever in them is damaged, or another sweep's."""
    stored, uid = read_notes(directory / FILE), sweep_uid(directory)
    content: dict[str, Any] = {"version": 1, "uid": uid, "name": directory.name, "logs": {}}
    if is_copied(directory, stored):
        return content
    if stored.get("uid") != uid:
        stored = {"current": stored.get("current")}
    if isinstance(stored.get("complete"), bool):
        content["complete"] = stored["complete"]
    current = mapping_or_empty(stored.get("current"))
    if _texts(current) and current.keys() >= {"uri", "experiment"}:
        content["current"] = {name: current[name] for name in ("uri", "experiment")}
    for label, log in mapping_or_empty(stored.get("logs")).items():
        if _is_log(log):  # else the tracker is asked
            content["logs"][label] = log
    return content


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_log(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    runs = value.get("runs")
    others = {name: text for name, text in value.items() if name != "runs" and text is not None}
    whole = isinstance(runs, dict) and all(
        _texts(mark) and {"run_id", "record_sha256"} <= mark.keys() for mark in runs.values()
    )
    return whole and _texts(others)
