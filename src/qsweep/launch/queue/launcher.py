"""``launch=workers``: jobs wait in a database, and workers anywhere take them."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

from qsweep.base.console import say
from qsweep.base.databases import DatabaseError, sqlite_path
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.memory import available_bytes
from qsweep.base.mounts import is_local, kind_of
from qsweep.base.secrets import hidden_value
from qsweep.launch import interrupts
from qsweep.launch.job import Event, Job, JobResult
from qsweep.launch.local.slots import make_slots
from qsweep.launch.protocol import Capacity, Detached, ignore, no_retry
from qsweep.launch.queue.database import Database, patiently
from qsweep.launch.queue.head import Head, Heartbeat, name_of
from qsweep.launch.queue.hints import QUEUE_VARIABLE, command, given_queue, queue_url
from qsweep.launch.queue.machines import is_dead, own_name
from qsweep.launch.queue.orders import NoLongerHead, Orders, Takeover
from qsweep.launch.queue.starting import LocalWorkers


@dataclass
class QueueLauncher:
    """Writes jobs into a queue, which ``qsweep worker`` processes drain, here or elsewhere.

    Attributes:
        queue: The URL of a database: sqlite for one machine, PostgreSQL for several. None: the file
            ``queue.db`` in the outputs' folder.
        start: How many workers to start on this machine.
        lease_s: Seconds after which a worker that gives no sign of life has lost its jobs.
        attempts: How many workers a job may lose before it has failed.
        detach: Whether to end once jobs are in the queue, and leave the rest to workers.
        on_interrupt: What Ctrl-C does with jobs that are not done: ``cancel`` withdraws them,
            ``leave`` leaves them to workers.
        patience_s: Seconds for which the database may be away.
        n_jobs: How many jobs each worker runs at once that is started here; ``auto``: one per GPU.
        sweep: The sweep's name; a sweep gives its own.
        outputs_dir: The outputs' folder; a sweep gives its own.

    Example::

        with QueueLauncher(start=2, sweep="night", outputs_dir=Path("outputs")) as launcher:
            results = launcher.run(jobs, on_done=record)
    """

    elsewhere: ClassVar[bool] = True

    queue: str | None = None
    start: int = 0
    lease_s: float = 60.0
    attempts: int = 3
    detach: bool = False
    on_interrupt: Literal["cancel", "leave"] = "cancel"
    patience_s: float = 600.0
    n_jobs: int | Literal["auto"] = "auto"
    sweep: str = "sweep"
    outputs_dir: Path = Path("outputs")

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ConfigError(f"launch.start={self.start}: a number of workers, from 0")
        if self.lease_s < 1:
            raise ConfigError(f"launch.lease_s={self.lease_s:g}: at least 1 second")
        if self.attempts < 1:
            raise ConfigError(f"launch.attempts={self.attempts}: a number from 1")
        if self.patience_s < 0:
            raise ConfigError(f"launch.patience_s={self.patience_s:g}: seconds, from 0")
        if self.n_jobs != "auto" and self.n_jobs < 1:
            raise ConfigError(f"n_jobs={self.n_jobs}: a number from 1, or auto")
        self._orders: Orders | None = None
        self._database: Database | None = None
        self._heartbeat: Heartbeat | None = None
        self._capacity: Capacity | None = None
        self._local = LocalWorkers()
        self._left = self._cancelled = self._told = False

    @property
    def url(self) -> str:
        """The queue's URL."""
        return queue_url(self.queue, Path(self.outputs_dir).absolute())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Find the queue, and become the sweep's head."""
        self._open()

    def capacity(self, devices: Sequence[str]) -> Capacity:
        """What the workers have that are there, else what those have that will be started here.

        A head that comes after another, whose jobs are not all done, plans as that one did.
        """
        orders = self._open()
        if self._capacity is None:
            live = patiently(orders.live_workers, self.patience_s, say=say)
            jobs = sum(worker.slots for worker in live)
            memory = sum(worker.memory for worker in live)
            self._capacity = Capacity(jobs, memory) if jobs else self.expected(devices)
        planned = self._capacity
        patiently(lambda: orders.plan_for(planned), self.patience_s, say=say)
        return planned

    def run(
        self,
        jobs: Sequence[Job],
        *,
        on_event: Callable[[Event], None] = ignore,
        on_done: Callable[[Job, JobResult], None] = ignore,
        retry: Callable[[Job, JobResult], Sequence[Job]] = no_retry,
    ) -> dict[str, JobResult]:
        """Run jobs; see :class:`~qsweep.launch.protocol.Launcher`.

        Raises:
            Detached: with ``detach``, as soon as the jobs are in the queue.
            NoLongerHead: another process runs the sweep now.
            QueueAway: the database was away for too long.
            KeyboardInterrupt: jobs were withdrawn, or left to workers, as ``on_interrupt`` says.
                All other exceptions leave them to workers.
        """
        head = Head(
            self._open(),
            jobs,
            patience_s=self.patience_s,
            hopeless=self.alive,
            say=say,
            on_event=on_event,
            on_done=on_done,
            retry=retry,
        )
        try:
            head.submit()
            if head.flow:
                self.start_workers(self.sweep, self.url, jobs)
                if self.detach:
                    self._leave_to_workers()
                head.wait()
        except Detached:
            raise
        except NoLongerHead:
            self._left = True
            raise
        except KeyboardInterrupt:
            interrupts.acknowledge()
            self._interrupted()
            raise
        except BaseException:
            self._leave_open(head)
            raise
        return {job.id: head.flow.results[job.id] for job in jobs} | head.flow.results

    def close(self) -> None:
        """Leave the queue: closed, unless workers are to go on without this process."""
        if self._heartbeat is not None:
            self._heartbeat.close()
            self._heartbeat = None
        if self._orders is not None:
            orders, self._orders = self._orders, None
            with contextlib.suppress(DatabaseError):
                # Those who took it over take its workers over, too.
                self._left |= not orders.leave(closed=not self._left)
        if self._database is not None:
            if not self._left:
                self.stop_workers(cancel=self._cancelled)
            self._database.close()
            self._database = None

    # What a launcher that starts workers by other means does in its own way

    def check(self) -> None:
        """Refuse what cannot work, before there is a queue. Raises ConfigError."""
        try:
            file = sqlite_path(self.url)
        except DatabaseError:
            return  # it is opened next, and says so
        if file is not None and not is_local(file):
            raise ConfigError(
                f"{file} is on a file system of several machines ({kind_of(file)}), where sqlite "
                "loses data; give launch.queue=postgresql://USER@HOST/DATABASE"
            )

    def expected(self, devices: Sequence[str]) -> Capacity:
        """What workers will have that are yet to come."""
        # Each is taken for a machine like this one.
        here = make_slots(self.n_jobs, devices).count
        return Capacity(self.start * here or 1, available_bytes())

    def worker_command(self, sweep: str, queue: str) -> list[str]:
        """How to start a worker, as arguments of a process.

        A URL with a password is not among them; it goes into the environment
        (:meth:`worker_environment`).
        """
        shown = [] if self.worker_environment(queue) else [f"--queue={queue}"]
        return [sys.executable, "-m", "qsweep", "worker", sweep, *shown, *self._at_once]

    def worker_environment(self, queue: str) -> dict[str, str]:
        """Variables that a worker needs beside its arguments."""
        return {QUEUE_VARIABLE: queue} if hidden_value(queue) != queue else {}

    def start_workers(self, sweep: str, queue: str, jobs: Sequence[Job]) -> None:
        """See to it that workers come, now that jobs are in the queue."""
        if self.start == 0 and not self._told:
            self._told = True
            start = " ".join([self._how_to("worker"), *self._at_once])
            say(f"sweep {sweep}: start workers, here or elsewhere: {start}")
        folder = Path(self.outputs_dir).absolute() / "sweeps" / sweep / "workers"
        worker = self.worker_command(sweep, queue), self.worker_environment(queue)
        if self.start:
            self._local.find(*worker, folder)
        for number in range(self._local.living(), self.start):
            self._local.start(*worker, folder / f"{os.getpid()}-{number}.log")

    def stop_workers(self, cancel: bool) -> None:
        """The queue is closed: end what was started here. With ``cancel`` jobs may still run."""
        self._local.stop()

    def alive(self) -> str | None:
        """Why no worker will ever come, in one line; None as long as one may."""
        if self.start == 0 or self._local.living():
            return None
        words = self._local.last_words()
        return f"all workers have ended{f': {words}' if words else ''}"

    @property
    def _at_once(self) -> list[str]:
        return [] if self.n_jobs == "auto" else [f"--jobs={self.n_jobs}"]

    def _how_to(self, verb: str) -> str:
        return command(verb, self.sweep, given_queue(self.queue), Path(self.outputs_dir).absolute())

    def _open(self) -> Orders:
        if self._orders is None:
            self.check()
            self._database = Database(self.url, "launch.queue")
            orders = Orders(self._database, self.sweep, own_name())
            self._become_head(orders)
            self._heartbeat = Heartbeat(orders, min(self.lease_s / 4, 15.0))
            self._orders = orders
            self._left = self._cancelled = False
        return self._orders

    def _become_head(self, orders: Orders) -> None:
        """Raises QsweepError where another process runs the sweep, and gives signs of it."""
        first: float | None = None
        give_up = time.monotonic() + self.lease_s + 1
        while True:
            found = patiently(self._asks(orders, None), self.patience_s, say=say)
            if found.head is not None and is_dead(found.head):
                found = patiently(self._asks(orders, found.head), self.patience_s, say=say)
            if found.head is None:
                self._capacity = found.capacity
                return
            if first is None:
                first = found.seen
                say(f"sweep {self.sweep}: waiting for {name_of(found.head)}, which may be gone")
            if found.seen > first or time.monotonic() > give_up:
                raise QsweepError(
                    f"sweep {self.sweep} is run by {name_of(found.head)}; wait for that, or name "
                    "this one otherwise with sweep=NAME"
                )
            interrupts.check()
            time.sleep(0.5)

    def _asks(self, orders: Orders, dead: str | None) -> Callable[[], Takeover]:
        return lambda: orders.take_over(self.lease_s, self.attempts, dead)

    def _leave_to_workers(self) -> None:
        self._left = True
        count = self._orders.open_jobs() if self._orders else 0
        raise Detached(
            f"sweep {self.sweep}: {count} jobs are in the queue; {self._how_to('status')} tells how "
            "they are, and the same command without --detach collects the results"
        )

    def _leave_open(self, head: Head) -> None:
        self._left = bool(head.flow)
        if self._left:
            say(
                f"sweep {self.sweep}: what is not done is left to workers; the same command collects "
                "the results"
            )

    def _interrupted(self) -> None:
        if self.on_interrupt == "leave":
            self._left = True
            say(f"sweep {self.sweep}: workers go on; the same command collects the results")
            return
        self._cancelled = True
        try:
            count = self._orders.withdraw() if self._orders else 0
        except DatabaseError as error:
            say(f"{error}; jobs could not be withdrawn, and workers go on with them")
            self._left = True
            return
        except NoLongerHead as error:
            say(str(error))
            self._left = True
            return
        if count:
            say(f"sweep {self.sweep}: {count} jobs withdrawn from the queue")
