"""The head's side of the queue: put jobs into it, hear what is new, take them out again."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, update

from qsweep.base.errors import QsweepError
from qsweep.launch.job import Job, JobResult
from qsweep.launch.protocol import Capacity
from qsweep.launch.queue.database import Database, QueueRefused
from qsweep.launch.queue.fit import live_workers, why_nobody_takes
from qsweep.launch.queue.rows import (
    chunks,
    delete_open,
    delete_with_needs,
    insert_jobs,
    is_met,
    is_without_result,
    kept_of,
)
from qsweep.launch.queue.specs import result_text, row_of
from qsweep.launch.queue.tables import (
    ASKED,
    NEW,
    OPEN,
    RUNNING,
    database_time,
    jobs,
    needs,
    sweeps,
)
from qsweep.launch.queue.upkeep import expire, has_head, lock, look, of

# Rows that are asked for at once.
_NEWS = 500


class NoLongerHead(QsweepError):
    """Another process has become the sweep's head: jobs and workers are its own now."""


@dataclass(frozen=True)
class Takeover:
    """What came of asking to be a sweep's head.

    Attributes:
        head: Another that is there, by its last heartbeat; None: it is this one.
        seen: When that was, by the database's clock.
        capacity: What was planned for by a head before this one, of which jobs are left.
    """

    head: str | None = None
    seen: float = 0.0
    capacity: Capacity | None = None


class Orders:
    """What a head does with the queue of its sweep.

    All methods raise QueueAway and QueueRefused; those that change jobs raise NoLongerHead, too.

    Args:
        database: Where the queue is.
        sweep: Its name.
        head: This head's name, which begins with its host and a colon.
    """

    def __init__(self, database: Database, sweep: str, head: str):
        self.sweep, self.head = sweep, head
        self._database = database

    def take_over(self, lease_s: float, attempts: int, dead: str | None = None) -> Takeover:
        """Become the sweep's head, unless another is there; ``dead`` is one known not to be."""
        mine = {
            "head": self.head,
            "head_seen": database_time(),
            "closed": False,
            "lease_s": lease_s,
            "attempts": attempts,
        }
        try:
            return self._take_over(mine, dead)
        except QueueRefused:  # another has put the sweep there at this moment
            return self._take_over(mine, dead)

    def _take_over(self, mine: Mapping[str, Any], dead: str | None) -> Takeover:
        with self._database.writing() as connection:
            row = lock(connection, self.sweep)
            if row is None:
                values = {"sweep": self.sweep, **mine, "slots": 0, "memory": 0}
                connection.execute(insert(sweeps).values(values))
                return Takeover()
            if has_head(row) and row.head not in (self.head, dead):
                return Takeover(row.head, row.head_seen)
            connection.execute(update(sweeps).where(sweeps.c.sweep == self.sweep).values(mine))
            left = select(jobs.c.id).where(jobs.c.sweep == self.sweep, OPEN)
            if row.slots and connection.execute(left.limit(1)).first() is not None:
                return Takeover(capacity=Capacity(row.slots, row.memory))
            return Takeover()

    def plan_for(self, capacity: Capacity) -> None:
        """Remember what the jobs are planned for, so that another head plans the same."""
        self._set(slots=capacity.jobs, memory=capacity.memory_bytes)

    def beat(self) -> None:
        """Say that this head is there."""
        self._set(head_seen=database_time())

    def leave(self, *, closed: bool) -> bool:
        """Say that it is gone; ``closed``: and that no more jobs will come.

        Returns whether it was the head until now; if not, nothing is written.
        """
        return self._set(head=None, closed=closed)

    def _set(self, **values: Any) -> bool:
        mine = and_(sweeps.c.sweep == self.sweep, sweeps.c.head == self.head)
        with self._database.writing() as connection:
            return bool(connection.execute(update(sweeps).where(mine).values(values)).rowcount)

    @contextlib.contextmanager
    def _as_head(self) -> Iterator[Connection]:
        """A transaction during which nobody else becomes the head."""
        with self._database.writing() as connection:
            row = lock(connection, self.sweep)
            if row is None or row.head != self.head:
                raise self._replaced()
            yield connection

    def _replaced(self) -> NoLongerHead:
        return NoLongerHead(
            f"sweep {self.sweep} was taken over by another process; the same command goes on where "
            "that stops"
        )

    def live_workers(self) -> list[Any]:
        """The workers that have said of late that they are there."""
        with self._database.reading() as connection:
            return live_workers(connection, self.sweep)

    def why_nobody_takes(self) -> str | None:
        """Why workers are there and yet nothing will run; None where something may."""
        with self._database.reading() as connection:
            return why_nobody_takes(connection, self.sweep)

    def submit(
        self, ordered: Sequence[Job], begins: Callable[[set[str]], object] = lambda _: None
    ) -> None:
        """Make these the sweep's jobs, in their order; only of them news is told from now on.

        Those that are under way already, or ended since a head last looked, stay as they are if
        they are the same jobs; all others are begun anew, and what is not among them is withdrawn.
        But preparations alone are no sweep: beside them the rest stays.

        Args:
            ordered: The jobs.
            begins: Told the ids of those that are begun anew, before any worker can have them.
        """
        rows = [row_of(job) for job in ordered]
        with self._as_head() as connection:
            kept = kept_of(connection, self.sweep, rows)
            open_ids = {job.id for job in ordered} - kept.keys()
            if any(job.counts for job in ordered) or not ordered:
                delete_open(connection, self.sweep, kept)
                connection.execute(delete(needs).where(needs.c.sweep == self.sweep))
            delete_with_needs(connection, self.sweep, open_ids)
            self._ask_for(connection, kept)
            self._unsettle(connection, kept)
            met = {id for id, row in kept.items() if is_met(row)}
            insert_jobs(connection, self.sweep, ordered, rows, range(len(rows)), open_ids, met)
            begins(open_ids)

    def _ask_for(self, connection: Connection, ids: Iterable[str]) -> None:
        """Of the jobs that are there these are the ones whose news the head wants."""
        mine = jobs.c.sweep == self.sweep
        connection.execute(update(jobs).where(mine, ASKED).values(asked=False))
        for chunk in chunks(sorted(ids)):
            connection.execute(update(jobs).where(mine, jobs.c.id.in_(chunk)).values(asked=True))

    def _unsettle(self, connection: Connection, kept: Mapping[str, Mapping[str, Any]]) -> None:
        """Have those told that come to need what did not finish, even if this head leaves at once."""
        ids = sorted(id for id, row in kept.items() if row["counts"] and is_without_result(row))
        for chunk in chunks(ids):
            mine = and_(jobs.c.sweep == self.sweep, jobs.c.id.in_(chunk))
            connection.execute(update(jobs).where(mine).values(settled=False))

    def _replace(self, connection: Connection, instead: Sequence[tuple[int, Job]]) -> None:
        """Put jobs in, each at its place; those that wait under their ids are withdrawn."""
        ordered = [job for _, job in instead]
        ids = {job.id for job in ordered}
        delete_with_needs(connection, self.sweep, ids)
        met: set[str] = set()
        for chunk in chunks(sorted({need for job in ordered for need in job.needs} - ids)):
            found = select(jobs.c.id).where(
                jobs.c.sweep == self.sweep, jobs.c.id.in_(chunk), jobs.c.state == "finished"
            )
            met |= set(connection.scalars(found))
        places = [place for place, _ in instead]
        insert_jobs(
            connection, self.sweep, ordered, [row_of(job) for job in ordered], places, ids, met
        )

    def news(self) -> list[Any]:
        """What has changed of the jobs that were submitted last, and was not :meth:`noted` yet.

        In the order of its end.
        """
        columns = [c for c in jobs.c if c.name not in ("spec", "log", "sweep")]
        with self._database.reading() as connection:
            return list(
                connection.execute(
                    select(*columns)
                    .where(jobs.c.sweep == self.sweep, NEW, ASKED)
                    .order_by(jobs.c.ended)
                    .limit(_NEWS)
                )
            )

    def log_of(self, id: str) -> str:
        """The end of what a job wrote."""
        with self._database.reading() as connection:
            return connection.scalar(select(jobs.c.log).where(of(self.sweep, id))) or ""

    def noted(
        self,
        rows: Iterable[Any],
        ended: Mapping[str, JobResult],
        instead: Sequence[tuple[int, Job]] = (),
    ) -> None:
        """Some news were taken notice of, and what is to come of them.

        Args:
            rows: The news.
            ended: Jobs that have a result by that, too, as they will never start.
            instead: Jobs to run instead of others, with their places.
        """
        noted = [{"one": row.id, "at": row.claim, "was": row.state} for row in rows]
        others = [
            {"one": id, "becomes": result.status, "text": result_text(result)}
            for id, result in ended.items()
        ]
        same = and_(jobs.c.sweep == self.sweep, jobs.c.id == bindparam("one"))
        with self._as_head() as connection:
            if instead:
                self._replace(connection, instead)
            if noted:
                unchanged = and_(
                    same, jobs.c.claim == bindparam("at"), jobs.c.state == bindparam("was")
                )
                connection.execute(
                    update(jobs).where(unchanged).values(news=False, settled=True), noted
                )
            if others:
                connection.execute(
                    update(jobs)
                    .where(same, jobs.c.state.in_(("waiting", "ready")))
                    .values(
                        state=bindparam("becomes"),
                        result=bindparam("text"),
                        ended=database_time(),
                        news=False,
                        settled=True,
                    ),
                    others,
                )

    def expire(self) -> None:
        """Take jobs from workers that are gone, as the next worker would."""
        with self._database.reading() as connection:
            late = select(jobs.c.id).where(
                jobs.c.sweep == self.sweep,
                RUNNING,
                jobs.c.lease_until < database_time(),
            )
            if connection.execute(late.limit(1)).first() is None:
                return
        with self._database.writing() as connection:
            expire(connection, self.sweep)

    def withdraw(self) -> int:
        """Take all that has not ended out of the queue; workers hear of it when they next look."""
        with self._as_head() as connection:
            return delete_open(connection, self.sweep, {})

    def open_jobs(self) -> int:
        """How many jobs are still to end."""
        with self._database.reading() as connection:
            counted = select(func.count()).where(jobs.c.sweep == self.sweep, OPEN)
            return int(connection.scalar(counted) or 0)

    def check(self) -> None:
        """Raise NoLongerHead if another head has taken the sweep."""
        with self._database.reading() as connection:
            row = look(connection, self.sweep)
        if row is None or row.head != self.head:
            raise self._replaced()
