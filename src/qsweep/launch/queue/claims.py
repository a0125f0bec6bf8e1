"""A worker's side of the queue: take a job, keep it, hand in what became of it.

A claim is a job's number of claims so far: what is done with a job needs the number to be still the
same, so that whoever comes back after its lease changes nothing (a fencing token).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, delete, insert, select, update

from qsweep.base.errors import in_one_line
from qsweep.launch.job import Job, JobResult
from qsweep.launch.queue.database import Database, QueueRefused
from qsweep.launch.queue.specs import job_of, result_text
from qsweep.launch.queue.tables import READY, RUNNING, database_time, jobs, sweeps, workers
from qsweep.launch.queue.upkeep import (
    are_undecided,
    expire,
    is_over,
    lock,
    lose,
    of,
    release,
    settle_alone,
)

# What not every encoding of a database has.
_ODD = re.compile(r"[^\t\n\x20-\x7e]")
# So many sweeps are told by name.
_NAMES = 6
_GIVEN_BACK = {
    "state": "ready",
    "owner": None,
    "attempts": jobs.c.attempts - 1,
    "lease_until": None,
    "news": True,
}


@dataclass(frozen=True, eq=False)
class Claim:
    """A job that is a worker's own until its lease ends. ``lease_s`` is the lease's length."""

    job: Job
    number: int
    lease_s: float


class Claims:
    """What one worker does with the jobs of a sweep. All methods raise QueueAway and QueueRefused.

    Args:
        database: Where the queue is.
        sweep: Its name.
        worker: This worker's name, which begins with its host and a colon.
        fits: Raises QsweepError for a job that cannot do here what it is for.
    """

    def __init__(
        self,
        database: Database,
        sweep: str,
        worker: str,
        fits: Callable[[Job], object] = lambda _: None,
    ):
        self.sweep, self.worker, self._fits = sweep, worker, fits
        self._database = database

    def enlist(self, host: str, slots: int, gpus: int, memory: int) -> None:
        """Say that this worker is there."""
        me = {"sweep": self.sweep, "worker": self.worker, "host": host, "slots": slots}
        with self._database.writing() as connection:
            connection.execute(delete(workers).where(self._me()))  # said before, unheard
            connection.execute(
                insert(workers).values(
                    **me,
                    gpus=gpus,
                    memory=memory,
                    started=database_time(),
                    seen=database_time(),
                )
            )

    def leave(self) -> None:
        """Say that this worker is gone; others have what is still its own, knowingly or not."""
        with self._database.writing() as connection:
            own = and_(jobs.c.sweep == self.sweep, RUNNING, jobs.c.owner == self.worker)
            connection.execute(update(jobs).where(own).values(_GIVEN_BACK))
            connection.execute(delete(workers).where(self._me()))

    def take(self, devices: Sequence[str]) -> Claim | None:
        """The first job that may start on one of these devices; None if there is none now.

        Raises:
            QsweepError: it is not for this worker, or version of qsweep; it is left to others.
        """
        with self._database.writing() as connection:
            expire(connection, self.sweep)
            found: list[Any] = []
            for device in devices:  # each the first of an index: none looks at all that wait
                found += connection.execute(
                    select(jobs, sweeps.c.lease_s)
                    .join(sweeps, sweeps.c.sweep == jobs.c.sweep)
                    .where(
                        jobs.c.sweep == self.sweep,
                        READY,
                        jobs.c.device == device,
                    )
                    .order_by(jobs.c.place)
                    .limit(1)
                    .with_for_update(of=jobs, skip_locked=True)
                ).all()
            if not found:
                return None
            row = min(found, key=lambda row: row.place)
            job = job_of(row._mapping)
            self._fits(job)
            connection.execute(
                update(jobs)
                .where(of(self.sweep, row.id))
                .values(
                    state="running",
                    owner=self.worker,
                    claim=row.claim + 1,
                    attempts=row.attempts + 1,
                    lease_until=database_time() + row.lease_s,
                    started=database_time(),
                    news=True,
                )
            )
        return Claim(job, row.claim + 1, row.lease_s)

    def still_held(self, claims: Iterable[Claim]) -> set[Claim]:
        """Those of some claims that are still this worker's."""
        wanted = {(claim.job.id, claim.number): claim for claim in claims}
        if not wanted:
            return set()
        with self._database.reading() as connection:
            rows = connection.execute(
                select(jobs.c.id, jobs.c.claim).where(
                    jobs.c.sweep == self.sweep,
                    jobs.c.id.in_([id for id, _ in wanted]),
                    jobs.c.state == "running",
                    jobs.c.owner == self.worker,
                )
            ).all()
        return {wanted[pair] for row in rows if (pair := (row.id, row.claim)) in wanted}

    def renew(self, claims: Iterable[Claim]) -> None:
        """Begin the leases of some claims anew, where nobody has taken them; say that one is there."""
        with self._database.writing() as connection:
            connection.execute(update(workers).where(self._me()).values(seen=database_time()))
            for claim in claims:
                connection.execute(
                    update(jobs)
                    .where(self._mine(claim))
                    .values(lease_until=database_time() + claim.lease_s)
                )

    def hand_in(self, claim: Claim, result: JobResult, log: str) -> JobResult | None:
        """Write down what became of a job, and let start what waited for it.

        Returns what was written: a plain failure where the database does not take the result; None
        if the job was no longer this worker's.
        """
        for text in (log, _ODD.sub("?", log)):
            try:
                return result if self._write(claim, result, text) else None
            except QueueRefused as error:
                why = in_one_line(error)
        failed = JobResult("failed", reason=f"its result cannot be handed in: {why}")
        return failed if self._write(claim, failed, "") else None

    def _write(self, claim: Claim, result: JobResult, log: str) -> bool:
        finished = result.status == "finished"
        with self._database.writing() as connection:
            lock(connection, self.sweep)
            written = connection.execute(
                update(jobs)
                .where(self._mine(claim))
                .values(
                    state=result.status,
                    result=result_text(result),
                    log=log,
                    ended=database_time(),
                    lease_until=None,
                    news=True,
                    settled=finished,
                )
            )
            if written.rowcount and finished:
                release(connection, self.sweep, claim.job.id)
            return bool(written.rowcount)

    def give_back(self, claims: Iterable[Claim]) -> None:
        """Let others take what this worker will not end; that is no attempt."""
        with self._database.writing() as connection:
            for claim in claims:
                connection.execute(update(jobs).where(self._mine(claim)).values(_GIVEN_BACK))

    def run_out_of_time(self, claims: Iterable[Claim]) -> None:
        """Give back what had most of this worker's time and was not done: that is an attempt."""
        cause = (
            "not done when its worker's time was up, {times} (on {hosts}): give workers more time "
            "(with launch=slurm, launch.time=DAYS-HH:MM:SS)"
        )
        with self._database.writing() as connection:
            for claim in claims:
                row = connection.execute(
                    select(jobs, sweeps.c.attempts.label("most"))
                    .join(sweeps, sweeps.c.sweep == jobs.c.sweep)
                    .where(self._mine(claim))
                    .with_for_update(of=jobs)
                ).one_or_none()
                if row is not None:
                    lose(connection, row, cause)

    def look_after(self) -> bool | None:
        """Do what a head would, if there is none.

        Returns whether the queue is finished; None where there is no such sweep.
        """
        with self._database.reading() as connection:
            over = is_over(connection, self.sweep)
            undecided = over is False and are_undecided(connection, self.sweep)
        while undecided:
            with self._database.writing() as connection:
                undecided = settle_alone(connection, self.sweep)
        return over

    def open_sweeps(self) -> list[str]:
        """Names of the sweeps that may have jobs, the last of them."""
        named = (
            select(sweeps.c.sweep)
            .where(sweeps.c.closed.is_(False))
            .order_by(sweeps.c.head_seen.desc())
            .limit(_NAMES)
        )
        with self._database.reading() as connection:
            return sorted(connection.scalars(named))

    def _me(self) -> Any:
        return and_(workers.c.sweep == self.sweep, workers.c.worker == self.worker)

    def _mine(self, claim: Claim) -> Any:
        return and_(
            of(self.sweep, claim.job.id),
            jobs.c.state == "running",
            jobs.c.owner == self.worker,
            jobs.c.claim == claim.number,
        )
