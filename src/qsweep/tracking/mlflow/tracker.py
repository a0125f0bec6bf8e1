"""Logging beside the sweep: a thread that never holds it up and never stops it."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qsweep.base.console import say
from qsweep.base.secrets import hidden
from qsweep.launch import interrupts
from qsweep.results.record import Record
from qsweep.tracking.mlflow.connection import check_sqlite_tracker
from qsweep.tracking.mlflow.journal import TrackingTarget, is_settled, ui_page
from qsweep.tracking.mlflow.sweeplog import SweepLog, read_records, sync_sweep
from qsweep.tracking.protocol import SweepFolder
from qsweep.tracking.settings import (
    TrackerError,
    TrackingConfig,
    public_uri,
    sync_command,
    ui_line,
)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 60.0
# How long the end of a sweep waits for what *other* sweeps could not log.
_OTHERS_S = 10.0
# How long the end waits for the tracker after an interrupt, which may be followed by a kill.
# Where nothing has reached the tracker yet, there is no run to close.
_INTERRUPTED_S, _UNREACHED_S = 8.0, 2.0


@dataclass(eq=False)
class MLflowTracker:
    """Logs a sweep in the background; an unreachable tracker costs one line and nothing else.

    The first trial runs while MLflow is imported. Records are on disk before they come here, so
    whatever this does not get done is done later.

    Attributes:
        enabled: False: nothing is logged.
        uri: Any MLflow tracking URI; None is sqlite in the outputs folder.
        experiment: Is created if it does not exist.

    Example::

        tracker = MLflowTracker()
        tracker.start(SweepFolder("my-sweep", "qsweep ...", directory, outputs), print)
        tracker.log(record)
        tracker.finish(records)
    """

    enabled: bool = True
    uri: str | None = None
    experiment: str = "qsweep"

    def __post_init__(self) -> None:
        self._config = TrackingConfig(self.enabled, self.uri, self.experiment)
        self._warn: Callable[[str], None] = say
        self._thread: threading.Thread | None = None
        self._wake = threading.Condition()
        # Shared with the thread, under _wake:
        self._pending: dict[str, Record] = {}
        self._final: list[Record] | None = None
        self._interrupted = False
        self._done = threading.Event()
        # The thread's own:
        self._log: SweepLog | None = None
        self._trouble = ""
        self._warned = False

    def start(self, sweep: SweepFolder, warn: Callable[[str], None] | None = None) -> None:
        """Begin: note on disk that this sweep is logged, and start the thread.

        Records of an earlier run of this sweep that never reached the tracker are logged now.
        """
        if not self.enabled:
            return
        self._name, self._command = sweep.name, sweep.command
        self._directory, self._outputs = sweep.directory, sweep.outputs
        self._target = TrackingTarget.of(self._config, sweep.outputs)
        self._warn = warn or say
        try:
            self._open()
        except (TrackerError, OSError) as error:
            # Somebody is logging this sweep's earlier run, or the disk is full: tried again later.
            self._trouble = str(error)
        try:
            check_sqlite_tracker(self._target.uri)
        except TrackerError as error:
            self._trouble = str(error)
            self._say_once()
        self._thread = threading.Thread(target=self._work, name="qsweep-tracker", daemon=True)
        self._thread.start()

    def log(self, record: Record) -> None:
        """Hand over a record that has been written to disk. Returns at once."""
        with self._wake:
            self._pending[record.key] = record
            self._wake.notify()

    def finish(
        self, records: Sequence[Record], *, interrupted: bool = False, timeout_s: float = 60.0
    ) -> None:
        """Log what is left and end the sweep's run, in at most ``timeout_s`` seconds.

        Says in one line how to log later what could not be logged now.
        """
        if self._thread is None:
            return
        self._interrupted = interrupted
        if self._log is not None and not interrupted:
            try:  # before anything that may wait: the sweep did come to its end
                self._log.journal.open(complete=True)
            except OSError as error:
                self._trouble = str(error)
        with self._wake:
            self._final = list(records)
            self._wake.notify()
        end = time.monotonic() + timeout_s
        while not self._done.wait(0.2) and time.monotonic() < end:
            if interrupts.interrupted():
                reached = self._log is not None and self._log.connected
                patience = _INTERRUPTED_S if reached else _UNREACHED_S
                interrupted, end = True, min(end, time.monotonic() + patience)
        if self._done.is_set() and not interrupted:
            self._thread.join(_OTHERS_S)
        if self._trouble or not self._done.is_set():
            why = self._trouble or f"MLflow at {public_uri(self._target.uri)} is slow"
            self._warn(f"{why}; to log what is missing: {sync_command(self._outputs)}")

    def hints(self, sweep: SweepFolder) -> list[str]:
        """What opens MLflow's UI, and the page there once the sweep is logged."""
        if not (line := ui_line(self._config, sweep.outputs)):
            return []
        page = ui_page(self._config, sweep.directory, sweep.outputs)
        there = [f"and there: {page}"] if page else []
        return [f"compare in the MLflow UI: {line}", *there]

    def _work(self) -> None:
        pause, retry_at = _FIRST_PAUSE_S, 0.0
        earlier = read_records(self._directory)
        with self._wake:
            for record in earlier:
                self._pending.setdefault(record.key, record)
        fresh = True
        while True:
            with self._wake:
                while self._final is None and (retry_at > time.monotonic() or not self._pending):
                    if fresh and retry_at <= time.monotonic():
                        break
                    late = max(retry_at - time.monotonic(), 0.05)
                    self._wake.wait(late if self._pending or fresh else None)
                batch, final = list(self._pending.values()), self._final
            try:
                self._round(batch, final)
                fresh = False
                if final is not None:
                    break
                pause = _FIRST_PAUSE_S
            except Exception as error:  # nothing that happens here may end a sweep
                self._trouble = _line(error)
                if final is not None:
                    break
                self._say_once()
                retry_at = time.monotonic() + pause
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        self._done.set()
        if self._log is not None:
            self._log.close()
        if not self._trouble:
            self._log_others()

    def _say_once(self) -> None:
        if not self._warned:
            self._warn(f"warning: {self._trouble}; the sweep goes on, and is logged later")
            self._warned = True

    def _round(self, batch: Sequence[Record], final: Sequence[Record] | None) -> None:
        log = self._log or self._open()
        if log.journal.parent is None:
            log.connect(self._name)
        _, refused = log.log_missing(batch)
        with self._wake:
            for record in batch:
                key = record.key
                if self._pending.get(key) is record and key not in refused:
                    del self._pending[key]
        if final is not None:
            log.finish(self._name, self._command, final, settled=not refused)
        if refused:
            raise TrackerError("; ".join(refused.values()))
        self._trouble = ""

    def _open(self) -> SweepLog:
        self._log = SweepLog(self._directory, self._target, self._outputs)
        self._log.journal.open(complete=self._final is not None and not self._interrupted)
        return self._log

    def _log_others(self) -> None:
        # What earlier sweeps could not log; one that is running logs itself, and says so.
        for notes in sorted(self._directory.parent.glob("*/tracking.json")):
            if notes.parent != self._directory and not is_settled(notes.parent, self._target):
                try:
                    sync_sweep(notes.parent, self._target, self._outputs)
                except (TrackerError, OSError):
                    continue


def _line(error: Exception) -> str:
    if isinstance(error, TrackerError):
        return str(error)
    return hidden(f"MLflow: {type(error).__name__}: {error}")
