"""The head's work: hand a flow of jobs to the queue, and tell the flow what workers made of them."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from qsweep.base.databases import DatabaseError
from qsweep.base.errors import in_one_line
from qsweep.launch import interrupts
from qsweep.launch.flow import Flow
from qsweep.launch.job import Event, Job, JobResult
from qsweep.launch.queue.database import patiently
from qsweep.launch.queue.orders import Orders
from qsweep.launch.queue.specs import result_of, row_of
from qsweep.launch.queue.upkeep import host_of

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
# How often it is asked whether workers will ever come, and looked for those that are gone.
_LOOK_EVERY_S = 3.0


class Head:
    """One call of the launcher's ``run``.

    Args:
        orders: The queue, as the head sees it.
        jobs: What to run.
        patience_s: How long the database may be away before it is given up.
        hopeless: Says why no worker will ever come, else None.
        say: Told what a person may want to know.
        on_event: As of the launcher's ``run``; so are ``on_done`` and ``retry``.
    """

    def __init__(
        self,
        orders: Orders,
        jobs: Sequence[Job],
        *,
        patience_s: float,
        hopeless: Callable[[], str | None],
        say: Callable[[str], None],
        on_event: Callable[[Event], None],
        on_done: Callable[[Job, JobResult], None],
        retry: Callable[[Job, JobResult], Sequence[Job]],
    ):
        self._orders, self._patience_s = orders, patience_s
        self._hopeless, self._say = hopeless, say
        self._on_done, self._retry = on_done, retry
        self._jobs = {job.id: job for job in jobs}
        self._open = set(self._jobs)
        # What came of a batch of news: other jobs that ended with it, and those to run instead.
        self._ended: dict[str, JobResult] = {}
        self._instead: dict[str, tuple[int, Job]] = {}
        self._first = 0
        self._looked = time.monotonic()
        self._told: str | None = None
        self.flow = Flow(jobs, on_event=on_event, on_done=self._is_done, retry=self._again)

    def submit(self) -> None:
        """Put the jobs into the queue; those that cannot be written down fail."""
        for job in list(self._jobs.values()):
            try:
                row_of(job)
            except (TypeError, ValueError) as error:
                if job.id in self._open:
                    reason = f"its payload is not JSON: {in_one_line(error)}"
                    self.flow.finish(job, JobResult("failed", reason=reason))
        left = [job for job in self._jobs.values() if job.id in self._open]
        self._ended.clear()
        self._patiently(lambda: self._orders.submit(left, self._forget_logs))

    def _forget_logs(self, ids: Iterable[str]) -> None:
        # A log of an earlier attempt would pass for that of a machine that sees no log of the head's.
        for id in ids:
            with contextlib.suppress(OSError):
                self._jobs[id].log.unlink(missing_ok=True)

    def wait(self) -> None:
        """Until every job has a result."""
        pause = _FIRST_PAUSE_S
        while self.flow:
            interrupts.check()
            if rows := self._patiently(self._orders.news):
                self._take(rows)
                pause = _FIRST_PAUSE_S
                continue
            if time.monotonic() - self._looked > _LOOK_EVERY_S:
                self._look()
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE_S)

    def _take(self, rows: Sequence[Any]) -> None:
        for row in rows:
            if row.id in self._open:
                self._take_one(row)
        ended, instead = dict(self._ended), list(self._instead.values())
        self._forget_logs(job.id for _, job in instead)
        self._patiently(lambda: self._orders.noted(rows, ended, instead))
        self._ended.clear()
        self._instead.clear()

    def _take_one(self, row: Any) -> None:
        job = self._jobs[row.id]
        if row.state == "running" and row.attempts == 1:
            self.flow.on_event(Event("started", job))
        elif row.state in ("running", "ready"):
            last = row.lost_on.rpartition(", ")[2]
            why = f"lost on {last}" if last else "given back"
            self.flow.on_event(Event("restarted", job, step=why))
        elif row.state in ("finished", "failed", "skipped"):
            self._keep_log(job)
            result = result_of(row._mapping)
            if result.status != "finished" and not job.counts and row.settled:
                self.flow.passed_over(job, result)  # workers went on, with no head to split it
            else:
                self.flow.ended(job, result)
            self._ended.pop(job.id, None)

    def _keep_log(self, job: Job) -> None:
        """Write the end of a job's log where its machine could not."""
        if not job.log.exists() and (text := self._patiently(lambda: self._orders.log_of(job.id))):
            with contextlib.suppress(OSError):
                job.log.parent.mkdir(parents=True, exist_ok=True)
                job.log.write_text(text, encoding="utf-8")

    def _look(self) -> None:
        self._looked = time.monotonic()
        self._patiently(self._orders.expire)
        self._patiently(self._orders.check)
        why = self._hopeless()
        if why is not None and not self._patiently(self._orders.live_workers):
            self._give_up(why)
        elif not self._patiently(self._orders.open_jobs) and not self._patiently(self._orders.news):
            self._give_up("the queue no longer has it; the same command puts it there again")

        else:
            self._tell(self._patiently(self._orders.why_nobody_takes))

    def _tell(self, line: str | None) -> None:
        if line is not None and line != self._told:
            self._say(f"sweep {self._orders.sweep}: {line}")
            self._told = line

    def _give_up(self, why: str) -> None:
        self._patiently(self._orders.withdraw)
        self.flow.finish_all(JobResult("failed", reason=why))
        self._ended.clear()

    def _is_done(self, job: Job, result: JobResult) -> None:
        self._open.discard(job.id)
        self._ended[job.id] = result
        self._on_done(job, result)

    def _again(self, job: Job, result: JobResult) -> Sequence[Job]:
        instead = list(self._retry(job, result))
        self._first -= len(instead)
        for place, one in enumerate(instead, self._first):
            self._jobs[one.id] = one
            self._open.add(one.id)
            self._instead[one.id] = (place, one)
        return instead

    def _patiently(self, call: Callable[[], Any]) -> Any:
        return patiently(call, self._patience_s, say=self._say)


class Heartbeat:
    """Says that the head is there, in a thread of its own: between batches, and while it records."""

    def __init__(self, orders: Orders, every_s: float):
        self._orders, self._every_s = orders, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="qsweep-head", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _beat(self) -> None:
        while not self._stop.wait(self._every_s):
            with contextlib.suppress(DatabaseError):  # the head itself notices
                self._orders.beat()


def name_of(head: str) -> str:
    """A head as a person is told of it: its host and process."""
    host = host_of(head)
    return f"process {head.split(':')[1]} on {host}"
