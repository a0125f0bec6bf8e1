"""Writes down what became of each trial, as soon as it stands."""

from dataclasses import replace
from typing import Any

from qsweep.base.console import say
from qsweep.base.environment import environment
from qsweep.results.record import Record
from qsweep.results.record_file import read_record, write_record
from qsweep.sweep.planning import Unplanned
from qsweep.sweep.recording import completed, now, timestamp, unfinished_record
from qsweep.sweep.state import Sweep
from qsweep.tracking import Tracker, fingerprint


class Recorder:
    """Writes records into a sweep's folder, keeps them in the sweep and hands them to its tracker."""

    def __init__(self, sweep: Sweep, tracker: Tracker):
        self._sweep, self._tracker = sweep, tracker
        self._asked = frozenset(sweep.asked)
        self._environment = environment()

    def refused(self, item: Unplanned) -> None:
        """A trial that cannot run."""
        content = unfinished_record(item.trial, item.key, item.status, item.reason)
        self._record(content, cached=False, started=now(), ended=now())

    def found(self, content: Record) -> None:
        """A trial whose results were in the store already."""
        self._record(content, cached=True)

    def done(self, content: Record, started: float | None, seconds: float) -> None:
        """A trial that has just ended; ``started`` is in seconds since the epoch."""
        began = None if started is None else timestamp(started)
        self._record(content, cached=False, seconds=seconds, started=began, ended=now())

    def _record(self, content: Record, *, cached: bool, **more: Any) -> None:
        sweep = self._sweep
        full = content.fidelity == "full"
        folder = sweep.directory / ("trials" if full else "screening")
        file = folder / f"{content.key}.json"
        content = replace(
            content,
            sweep=sweep.name,
            command=sweep.command,
            environment=self._environment,
            log=str(sweep.log_of(content.key)),
            cached=cached,
            implied=content.key not in self._asked,
            **more,
        )
        earlier = read_record(file) if cached else None
        if cached and earlier is None and file.exists():
            say(f"note: {file}: no record that can be read; it is written again")
        # Keep what says when, where and by which command it really was made.
        kept = None if earlier is None else completed(earlier, content)
        if kept is None or fingerprint(kept) != fingerprint(content):
            write_record(file, content)
        else:
            if kept != earlier:
                write_record(file, kept)
            content = replace(kept, cached=True)
        (sweep.records if full else sweep.screening)[content.key] = content
        if full:
            self._tracker.log(content)
