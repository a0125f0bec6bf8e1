"""``tracking.json``: what of a sweep is logged where; and the lock that keeps loggers apart."""

import json
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsweep.files import write_json
from qsweep.locks import FileLock
from qsweep.tracking.settings import TrackingConfig, public_uri, resolved_uri

FILE = "tracking.json"


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

    A mark that a crash lost costs nothing but time: the run is found again by its tag. Threads may
    share a journal; processes are kept apart by :func:`logger_lock`.
    """

    def __init__(self, directory: Path, place: Place):
        self._path = directory / FILE
        self._content = _read(self._path)
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
    def complete(self) -> bool:
        """Whether the sweep came to its end, as opposed to having been killed."""
        return bool(self._content.get("complete"))

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

    def set_parent(self, run_id: str) -> None:
        """Note the parent run. Another than before means that the tracker was emptied."""
        with self._guard:
            if run_id != self.parent:
                self._log |= {"parent": run_id, "runs": {}}
            self._log["summary"] = None
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
    current = _read(directory / FILE).get("current")
    return Place(**current) if current else None


def ui_page(config: TrackingConfig, directory: Path, outputs: Path) -> str | None:
    """The page of the UI with qsweep's columns and charts, once a sweep is logged; else None.

    Where the tracker is no server, the host is the one that ``mlflow ui`` listens on by default.
    """
    uri = resolved_uri(config.uri, outputs)
    label = Place(uri, config.experiment).label
    page = _read(directory / FILE)["logs"].get(label, {}).get("page")
    host = public_uri(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{host}/{page}" if page else None


def is_settled(directory: Path, place: Place) -> bool:
    """Whether nothing of a sweep is missing at ``place``, as far as its own notes say."""
    content = _read(directory / FILE)
    current = content.get("current")
    if not current or Place(**current).label != place.label:
        return True
    return bool(content["logs"].get(place.label, {}).get("summary"))


def logger_lock(directory: Path) -> FileLock:
    """Held by the one process that may log a sweep; the system drops a dead process's."""
    return FileLock(directory / ".tracking.lock", timeout_s=0)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content.get("logs"), dict) and content.get("uid"):
            return dict(content)
    except (OSError, ValueError, AttributeError):
        pass
    return {"version": 1, "uid": uuid.uuid4().hex, "logs": {}}
