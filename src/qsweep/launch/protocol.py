"""What a launcher is: whatever runs jobs, on this machine or on many. ``launch=NAME`` chooses one.

A launcher of another package is a dataclass whose fields are its options; its ``_target_``, in a
YAML file of the group ``launch`` or as an entry point of the group ``qsweep.launchers``, makes it a
choice. It needs what every job needs: a file system that all its machines share (the store, the
model and the log are paths), and qsweep installed on each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

from qsweep.base.errors import QsweepError
from qsweep.launch.job import Event, Job, JobResult


def ignore(*_: Any) -> None:
    """Take no notice."""


def no_retry(job: Job, result: JobResult) -> Sequence[Job]:
    """Do not try again."""
    return ()


class Detached(QsweepError):
    """The launcher leaves its jobs to others; the text says how to come back to them."""


@dataclass(frozen=True)
class Capacity:
    """How much runs at once.

    Attributes:
        jobs: How many jobs.
        memory_bytes: Free host memory that these have together.
    """

    jobs: int
    memory_bytes: int


@runtime_checkable
class Launcher(Protocol):
    """Runs jobs between ``__enter__`` and ``__exit__``.

    What it must keep to:

    * A job is called as ``function(payload, progress)`` in a process of its own, which finds the
      device that is its own in the environment variable ``QSWEEP_DEVICE`` (``cpu``, ``cuda:0``, or
      ``cuda`` for all that it sees), and whose output goes to ``job.log``.
    * A job starts when all its ``needs`` have finished. Where one of these failed, it fails; where
      one was skipped, it is skipped; the reason says which.
    * However a job ends (an exception, a signal, no memory, ``timeout_s``, a lost machine), it is a
      :class:`JobResult` with a reason of one line, and never an exception of the launcher.
    * Results are handed over in the caller's thread, one at a time, as soon as they stand.

    One whose jobs run on other machines has a class attribute ``elsewhere`` that is true: trials are
    then planned for ``device=cuda`` though this machine may have no GPU.
    """

    def __enter__(self) -> Self:
        """Begin. Costs nothing yet: a sweep whose results are all there runs no job."""
        ...

    def __exit__(self, *_: object) -> None:
        """The same as :meth:`close`."""
        ...

    def prepare(self) -> None:
        """Jobs will come: start what takes time. Returns at once."""
        ...

    def capacity(self, devices: Sequence[str]) -> Capacity:
        """How much could run at once of jobs that ask for these devices.

        Raises:
            ConfigError: a device has no known name.
        """
        ...

    def run(
        self,
        jobs: Sequence[Job],
        *,
        on_event: Callable[[Event], None] = ignore,
        on_done: Callable[[Job, JobResult], None] = ignore,
        retry: Callable[[Job, JobResult], Sequence[Job]] = no_retry,
    ) -> dict[str, JobResult]:
        """Run jobs, in their order where there is a choice.

        Args:
            jobs: What to run.
            on_event: Called for whatever a display may want to know.
            on_done: Called with every job as soon as it is done, so that it can be recorded.
            retry: Called with every job that ran and did not finish; gives the jobs to run instead
                of it, those first, and those that are to stand in for waiting ones of the same id.

        Returns:
            The result of every job, by id, those that were tried again included.

        Raises:
            ValueError: ids that occur twice, needs that are not among the jobs, or a circle of them.
            KeyboardInterrupt: after every running job was ended; what was done was reported.
            Detached: jobs go on without this process, as was asked for.
        """
        ...

    def close(self) -> None:
        """End every job that still runs, within seconds."""
        ...
