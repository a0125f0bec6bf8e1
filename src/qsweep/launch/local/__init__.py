"""Jobs on this machine, each in a process of its own: ``launch=local``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from qsweep.base.errors import ConfigError
from qsweep.base.memory import available_bytes
from qsweep.launch.job import Event, Job, JobResult
from qsweep.launch.local.client import PRELOAD, ForkServer
from qsweep.launch.local.schedule import run_jobs
from qsweep.launch.local.slots import Slots, make_slots
from qsweep.launch.protocol import Capacity, ignore, no_retry

__all__ = ["PRELOAD", "ForkServer", "LocalLauncher", "Slots", "make_slots", "run_jobs"]


@dataclass
class LocalLauncher:
    """One process per job, forked from one that has the slow imports behind it.

    Attributes:
        n_jobs: How many jobs run at once; ``auto``: one per visible GPU, one on the CPU.

    Example::

        with LocalLauncher(n_jobs=2) as launcher:
            results = launcher.run(jobs, on_done=record)
    """

    n_jobs: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.n_jobs != "auto" and self.n_jobs < 1:
            raise ConfigError(f"n_jobs={self.n_jobs}: a number from 1, or auto")
        self._server = ForkServer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Start the fork server, which imports torch beside the caller's work."""
        self._server.start()

    def capacity(self, devices: Sequence[str]) -> Capacity:
        """As many jobs as there are slots; they share this machine's free memory."""
        return Capacity(make_slots(self.n_jobs, devices).count, available_bytes())

    def run(
        self,
        jobs: Sequence[Job],
        *,
        on_event: Callable[[Event], None] = ignore,
        on_done: Callable[[Job, JobResult], None] = ignore,
        retry: Callable[[Job, JobResult], Sequence[Job]] = no_retry,
    ) -> dict[str, JobResult]:
        """Run jobs; see :class:`~qsweep.launch.protocol.Launcher`."""
        slots = make_slots(self.n_jobs, [job.device for job in jobs])
        return run_jobs(
            jobs,
            slots=slots,
            on_event=on_event,
            on_done=on_done,
            retry=retry,
            server=self._server,
        )

    def close(self) -> None:
        """End the fork server and all that it started; it may be started again."""
        self._server.close()
