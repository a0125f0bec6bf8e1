"""What a tracker is: whatever keeps the results of sweeps beside their folders. ``tracking=NAME``.

A tracker of another package is a dataclass whose fields are its options; its ``_target_``, in a YAML
file of the group ``tracking`` or as an entry point of the group ``qsweep.trackers``, makes it a
choice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from qsweep.results.record import Record


@dataclass(frozen=True)
class SweepFolder:
    """The sweep that is tracked: its name, its command line, its folder, and all sweeps' outputs."""

    name: str
    command: str
    directory: Path
    outputs: Path


@runtime_checkable
class Tracker(Protocol):
    """Keeps the records of one sweep.

    What it must keep to: records are on disk before they come here, so whatever goes wrong is said
    in a line and stops nothing; nothing waits for a network but :meth:`finish`, and that not for
    minutes. The constructor checks its own values (raising
    :class:`~qsweep.base.errors.ConfigError`), asks nobody and imports nothing heavy.
    """

    def start(self, sweep: SweepFolder, warn: Callable[[str], None]) -> None:
        """Begin; ``warn`` takes a line for the person. Returns at once."""
        ...

    def log(self, record: Record) -> None:
        """Take a record that has been written to disk, perhaps not for the first time."""
        ...

    def finish(self, records: Sequence[Record], *, interrupted: bool = False) -> None:
        """Keep what is left, and end the sweep; ``records`` are all that it has."""
        ...

    def hints(self, sweep: SweepFolder) -> list[str]:
        """Lines for the person that say where the results can be looked at."""
        ...
