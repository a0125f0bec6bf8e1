"""``launch=slurm``: jobs wait in a queue, and Slurm runs the workers that take them."""

import contextlib
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qsweep.base.console import say
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.memory import available_bytes
from qsweep.launch import interrupts
from qsweep.launch.job import Job
from qsweep.launch.protocol import Capacity
from qsweep.launch.queue.database import patiently
from qsweep.launch.queue.launcher import QueueLauncher
from qsweep.launch.slurm.array import (
    Array,
    SlurmAway,
    State,
    check_installed,
    in_words,
    why_hopeless,
)
from qsweep.launch.slurm.options import Allocation, parameters
from qsweep.launch.slurm.task import Task

# Slurm's controller is asked no more often than that.
_LOOK_EVERY_S = 10.0
# Workers that cannot start may be able to in a moment, as after an administrator's change.
_STUCK_S = 60.0
# Slurm takes no more at once, unless its MaxArraySize says so; further ones follow these.
_LARGEST_ARRAY = 1000
# What Slurm and submitit add to a worker's log.
_NOT_THE_WORKERS = re.compile(r"(srun|slurmstepd[^:]*|submitit \w+)\b")


@dataclass
class SlurmLauncher(Allocation, QueueLauncher):
    """Writes jobs into a queue, and submits the workers that drain it as an array of Slurm.

    Attributes:
        workers: How many workers.
        per: ``worker``: each runs one job after another until there are none; ``job``: there are as
            many as jobs, and each runs one.

    Example::

        with SlurmLauncher(workers=8, partition="gpu", gpus_per_node=1, time="4:00:00") as launcher:
            results = launcher.run(jobs, on_done=record)
    """

    workers: int = 1
    per: Literal["worker", "job"] = "worker"
    start: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        Allocation.__post_init__(self)
        QueueLauncher.__post_init__(self)
        if self.workers < 1:
            raise ConfigError(f"launch.workers={self.workers}: a number of workers, from 1")
        self._array: Array | None = None
        self._told_last: object = None
        self._why: str | None = None
        self._has_submitted = self._lacking = False
        self._looked = -math.inf
        self._stuck_since = math.inf

    @property
    def folder(self) -> Path:
        """Where the workers' logs are, beside submitit's files."""
        return workers_folder(Path(self.outputs_dir), self.sweep)

    def check(self) -> None:
        """Raise ConfigError where there is no Slurm, or workers could not share the queue."""
        super().check()
        check_installed()

    def expected(self, devices: Sequence[str]) -> Capacity:
        """As many jobs at once as there will be workers, or GPUs of theirs.

        Raises:
            ConfigError: workers are to have GPUs, and nothing was planned for one.
        """
        if self.gpus and devices and set(devices) == {"cpu"}:
            raise ConfigError(
                "launch=slurm: workers would have GPUs, and all trials were planned for the CPU, which "
                "is all that this machine has; give device=cuda, or leave launch.gpus_per_node and launch.gres out"
            )
        memory = int(self.mem_gb * 2**30) if self.mem_gb else available_bytes()
        at_once = min(self.workers, self.array_parallelism or self.workers)
        return Capacity(at_once * self._slots, at_once * memory)

    def worker_command(self, sweep: str, queue: str) -> list[str]:
        """How to start a worker."""
        one = ["--take=1", "--jobs=1"] if self.per == "job" else []
        return super().worker_command(sweep, queue) + one

    def start_workers(self, sweep: str, queue: str, jobs: Sequence[Job]) -> None:
        """Submit the workers that are lacking; those of an earlier head may be there yet.

        Where Slurm does not answer, this is done as soon as it does; and who leaves then (``detach``)
        waits for that.

        Raises:
            ConfigError: it does not take the first of them. Of later ones, QsweepError.
        """
        self._lacking = True
        while self._lacking:
            try:
                self._bring_workers(sweep, queue)
                self._lacking = False
            except SlurmAway as error:
                self._tell(f"{error}; waiting for Slurm")
                if not self.detach:
                    return
                interrupts.check()
                time.sleep(_LOOK_EVERY_S)

    def _bring_workers(self, sweep: str, queue: str) -> None:
        array = self._array or Array.recorded(self.folder)
        living: list[State] = []
        if array.jobs:
            living = [one for one in array.states() if one.lives and one.state != "COMPLETING"]
            if living and self._array is None:
                say(f"sweep {sweep}: {in_words(array, living)}")
        self._array = array
        left = self._open_jobs()
        most = _LARGEST_ARRAY if self.per == "job" else self.workers
        wanted = min(most, math.ceil(left / self._slots))
        if wanted > len(living):
            try:
                self._submit(sweep, queue, wanted - len(living))
            except ConfigError as error:
                if living:
                    self._tell(f"{error}; going on with {len(living)} of {wanted} workers")
                elif array.jobs:  # with the same options others were taken
                    raise QsweepError(str(error)) from error
                else:
                    raise

    def stop_workers(self, cancel: bool) -> None:
        """Cancel workers: all, or those that have not begun, since the others end by themselves."""
        if self._array is not None:
            try:
                self._array.cancel(waiting=not cancel)
            except SlurmAway as error:
                say(f"{error}; scancel {' '.join(self._array.jobs)} ends the workers")

    def alive(self) -> str | None:
        """Why no worker will come any more, in one line; None as long as one may."""
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return self._why
        self._looked = time.monotonic()
        if self._lacking:
            self.start_workers(self.sweep, self.url, [])
        elif self._array is not None:
            try:
                self._why = self._look(self._array)
            except SlurmAway as error:
                self._tell(f"{error}; waiting for Slurm")
        return self._why

    def _look(self, array: Array) -> str | None:
        states = array.states()
        kinds = {(one.state, one.reason if one.waits else "") for one in states}
        self._tell(f"sweep {self.sweep}: {in_words(array, states)}", kinds)
        why = why_hopeless(array, states)
        if why is not None and any(one.lives for one in states):
            self._stuck_since = min(self._stuck_since, time.monotonic())
            return why if time.monotonic() - self._stuck_since >= _STUCK_S else None
        self._stuck_since = math.inf
        if why is None:
            return None
        last = [one.state for one in states if one.id.partition("_")[0] == array.jobs[-1]]
        if "COMPLETED" in last and (self.per == "job" or not self._has_submitted):
            # Each has ended a job, and others came of these; or an earlier head's ended with that.
            self.start_workers(self.sweep, self.url, [])
            return None
        words = last_words(self.folder)
        return f"{why}{f': {words}' if words else ''}"

    @property
    def _slots(self) -> int:
        """How many jobs a worker runs at once."""
        if self.per == "job":
            return 1
        return (self.gpus or 1) if self.n_jobs == "auto" else self.n_jobs

    def _open_jobs(self) -> int:
        return patiently(self._open().open_jobs, self.patience_s, say=say)

    def _submit(self, sweep: str, queue: str, count: int) -> None:
        assert self._array is not None
        task = Task(self.worker_command(sweep, queue), self.signal_delay_s, self.requeue)
        asked = parameters(self, f"qsweep-{sweep}", count)
        with interrupts.finishing():  # or nobody would know of them
            self._array = self._array.and_more(
                self.folder, task, self.worker_environment(queue), asked, count
            )
        self._has_submitted = True
        plural = "s" if count > 1 else ""
        say(f"sweep {sweep}: {count} worker{plural} submitted, Slurm job {self._array.jobs[-1]}")

    def _tell(self, line: str, news: object = None) -> None:
        if (news or line) != self._told_last:
            self._told_last = news or line
            say(line)


def workers_folder(outputs: Path, sweep: str) -> Path:
    """Where a sweep's workers write their logs."""
    return outputs.absolute() / "sweeps" / sweep / "workers"


def describe(outputs: Path, sweep: str) -> list[str]:
    """How Slurm has a sweep's workers, in a line; nothing where it was given none."""
    array = Array.recorded(workers_folder(outputs, sweep))
    if not array.jobs:
        return []
    try:
        return [in_words(array, array.states())]
    except SlurmAway as error:
        return [f"{array}: {error}"]


def last_words(folder: Path) -> str | None:
    """The last line that a worker wrote itself, of the one that wrote last; None if there is none."""
    logs = list(folder.glob("*_log.out"))
    with contextlib.suppress(OSError, ValueError):
        lines = max(logs, key=lambda log: log.stat().st_mtime).read_text(errors="replace")
        own = [line for line in lines.splitlines() if line and not _NOT_THE_WORKERS.match(line)]
        return own[-1] if own else None
    return None
