"""No tracker: ``tracking=none``. Tables and pages are written all the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qsweep.base.errors import ConfigError
from qsweep.results.record import Record
from qsweep.tracking.protocol import SweepFolder


@dataclass(frozen=True)
class NoTracker:
    """Keeps nothing. Its options are those of MLflow, so that a command line may leave them in."""

    enabled: bool = False
    uri: str | None = None
    experiment: str = "qsweep"

    def __post_init__(self) -> None:
        if self.enabled:
            raise ConfigError("tracking.enabled=true: tracking=none keeps nothing; leave it out")

    def start(self, sweep: SweepFolder, warn: Callable[[str], None]) -> None:
        """Nothing begins."""

    def log(self, record: Record) -> None:
        """Nothing is kept."""

    def finish(self, records: Sequence[Record], *, interrupted: bool = False) -> None:
        """Nothing ends."""

    def hints(self, sweep: SweepFolder) -> list[str]:
        """There is nothing to look at."""
        return []
