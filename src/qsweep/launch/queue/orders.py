"""The head's side of the queue: put jobs into it, hear what is new, take them out again."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, update

from qsweep.launch.job import Job, JobResult
from qsweep.launch.protocol import Capacity
from qsweep.launch.queue.database import Database
from qsweep.launch.queue.specs import result_text, row_of
from qsweep.launch.queue.tables import (
    NEW,
    OPEN,
    RUNNING,
    database_time,
    jobs,
    needs,
    sweeps,
    workers,
)
from qsweep.launch.queue.upkeep import expire, has_head, lock, look, of

# Rows that go into one statement, and that are asked for at once.
_ROWS = 200
_NEWS = 500
# A worker whose last heartbeat is older than this is gone, or cut off.
ALIVE_S = 45.0


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
    """What a head does with the queue of its sweep. All methods raise QueueAway.

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

    def leave(self, *, closed: bool) -> None:
        """Say that it is gone; ``closed``: and that no more jobs will come."""
        self._set(head=None, closed=closed)

    def _set(self, **values: Any) -> None:
        mine = and_(sweeps.c.sweep == self.sweep, sweeps.c.head == self.head)
        with self._database.writing() as connection:
            connection.execute(update(sweeps).where(mine).values(values))

    def live_workers(self) -> list[Any]:
        """The workers that have said of late that they are there."""
        with self._database.reading() as connection:
            return list(
                connection.execute(
                    select(workers).where(
                        workers.c.sweep == self.sweep, workers.c.seen > database_time() - ALIVE_S
                    )
                )
            )

    def submit(self, ordered: Sequence[Job]) -> None:
        """Make these the sweep's jobs, in their order.

        Those that are under way already, or ended since a head last looked, stay as they are if
        they are the same jobs; all others are begun anew, and what is not among them is withdrawn.
        But preparations alone are no sweep: beside them the rest stays.
        """
        rows = [row_of(job) for job in ordered]
        with self._database.writing() as connection:
            lock(connection, self.sweep)
            kept = self._kept(connection, rows)
            open_ids = {job.id for job in ordered} - kept.keys()
            if any(job.counts for job in ordered) or not ordered:
                _delete_open(connection, self.sweep, kept)
                connection.execute(delete(needs).where(needs.c.sweep == self.sweep))
            self._delete(connection, open_ids)
            met = {id for id, row in kept.items() if _is_met(row)}
            self._insert(connection, ordered, rows, range(len(rows)), open_ids, met)

    def _replace(self, connection: Connection, instead: Sequence[tuple[int, Job]]) -> None:
        """Put jobs in, each at its place; those that wait under their ids are withdrawn."""
        ordered = [job for _, job in instead]
        ids = {job.id for job in ordered}
        self._delete(connection, ids)
        met: set[str] = set()
        for chunk in _chunks(sorted({need for job in ordered for need in job.needs} - ids)):
            found = select(jobs.c.id).where(
                jobs.c.sweep == self.sweep, jobs.c.id.in_(chunk), jobs.c.state == "finished"
            )
            met |= set(connection.scalars(found))
        places = [place for place, _ in instead]
        self._insert(connection, ordered, [row_of(job) for job in ordered], places, ids, met)

    def _delete(self, connection: Connection, ids: set[str]) -> None:
        """Take jobs out, with what they need."""
        _delete_ids(connection, self.sweep, ids)
        for chunk in _chunks(sorted(ids)):
            mine = and_(needs.c.sweep == self.sweep, needs.c.job.in_(chunk))
            connection.execute(delete(needs).where(mine))

    def _kept(
        self, connection: Connection, rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Mapping[str, Any]]:
        """Jobs of an earlier head that stay as they are, by id."""
        asked = {row["id"]: row["fingerprint"] for row in rows}
        columns = (jobs.c.id, jobs.c.state, jobs.c.fingerprint, jobs.c.news)
        earlier = connection.execute(
            select(*columns, jobs.c.counts, jobs.c.settled).where(
                jobs.c.sweep == self.sweep, jobs.c.state.not_in(("waiting", "ready"))
            )
        ).mappings()
        return {
            row["id"]: dict(row)
            for row in earlier
            if asked.get(row["id"]) == row["fingerprint"]
            and (row["state"] == "running" or row["news"])
        }

    def _insert(
        self,
        connection: Connection,
        ordered: Sequence[Job],
        rows: Sequence[dict[str, Any]],
        places: Sequence[int],
        ids: set[str],
        met: set[str],
    ) -> None:
        values, edges = [], []
        # No two rows of one id, one put in after the other, have a claim's number in common.
        claim = secrets.randbelow(1 << 30)
        for job, row, place in zip(ordered, rows, places, strict=True):
            if job.id not in ids:
                continue
            wanted = [need for need in dict.fromkeys(job.needs) if need not in met]
            values.append(
                {
                    "sweep": self.sweep,
                    **row,
                    "place": place,
                    "state": "waiting" if wanted else "ready",
                    "missing": len(wanted),
                    "claim": claim,
                    "attempts": 0,
                    "lost_on": "",
                    "news": False,
                    "settled": True,
                }
            )
            edges += [{"sweep": self.sweep, "need": need, "job": job.id} for need in wanted]
        for table, all_rows in ((jobs, values), (needs, edges)):
            for chunk in _chunks(all_rows):
                connection.execute(insert(table), chunk)

    def news(self) -> list[Any]:
        """What has changed since it was last said to be :meth:`noted`, in the order of its end."""
        columns = [c for c in jobs.c if c.name not in ("spec", "log", "sweep")]
        with self._database.reading() as connection:
            return list(
                connection.execute(
                    select(*columns)
                    .where(jobs.c.sweep == self.sweep, NEW)
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
        with self._database.writing() as connection:
            lock(connection, self.sweep)
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
        with self._database.writing() as connection:
            lock(connection, self.sweep)
            return _delete_open(connection, self.sweep, {})

    def open_jobs(self) -> int:
        """How many jobs are still to end."""
        with self._database.reading() as connection:
            counted = select(func.count()).where(jobs.c.sweep == self.sweep, OPEN)
            return int(connection.scalar(counted) or 0)

    def is_head(self) -> bool:
        """Whether no other head has taken the sweep."""
        with self._database.reading() as connection:
            row = look(connection, self.sweep)
            return row is not None and row.head == self.head


def _is_met(row: Mapping[str, Any]) -> bool:
    # Of a preparation that did not finish those that need it may have been told without a head.
    passed_over = row["state"] in ("failed", "skipped") and row["settled"] and not row["counts"]
    return row["state"] == "finished" or passed_over


def _delete_open(connection: Connection, sweep: str, kept: Mapping[str, Any]) -> int:
    waiting = and_(jobs.c.sweep == sweep, jobs.c.state.in_(("waiting", "ready")))
    count = connection.execute(delete(jobs).where(waiting)).rowcount
    running = select(jobs.c.id).where(jobs.c.sweep == sweep, jobs.c.state == "running")
    stopped = [id for id in connection.scalars(running) if id not in kept]
    _delete_ids(connection, sweep, stopped)
    return count + len(stopped)


def _delete_ids(connection: Connection, sweep: str, ids: Iterable[str]) -> None:
    for chunk in _chunks(sorted(ids)):
        connection.execute(delete(jobs).where(jobs.c.sweep == sweep, jobs.c.id.in_(chunk)))


def _chunks(items: Sequence[Any]) -> Iterable[Any]:
    return (items[start : start + _ROWS] for start in range(0, len(items), _ROWS))
