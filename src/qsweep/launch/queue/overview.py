"""What a queue says of a sweep, for people."""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select

from qsweep.launch.queue.database import Database
from qsweep.launch.queue.fit import ALIVE_S, why_nobody_takes
from qsweep.launch.queue.specs import result_of
from qsweep.launch.queue.tables import DONE, NEW, OPEN, database_time, jobs, workers
from qsweep.launch.queue.upkeep import has_head, host_of, look

# So many lines of one kind; of the others only the number is told (counts, unseen).
_SHOWN = 20


@dataclass(frozen=True)
class Running:
    """A job under way. ``late_s``: for how long its worker has owed a sign of life, if it does."""

    name: str
    host: str
    seconds: float
    attempt: int
    late_s: float


@dataclass(frozen=True)
class WorkerSeen:
    """A worker, and how long ago its last heartbeat was."""

    name: str
    slots: int
    gpus: int
    seconds: float

    @property
    def alive(self) -> bool:
        """Whether it was there of late."""
        return self.seconds < ALIVE_S


@dataclass(frozen=True)
class Overview:
    """A sweep in its queue.

    Attributes:
        counts: Jobs that were asked for, by state.
        preparations: The others that are not done, by state.
        running: What runs where, the longest first, as far as it is shown.
        workers: Those that are there, or were and did not say goodbye.
        open: Ids of those that were asked for and have not ended.
        unseen: What has ended and no head has recorded yet: states by id.
        failed: Of those of them that failed, names and reasons, as far as they are shown.
        head: The process that plans and records, and seconds since its heartbeat; None: none is there.
        closed: Whether no more jobs will come.
        stuck: Why workers are there and yet nothing will run, in one line.
    """

    counts: dict[str, int]
    preparations: dict[str, int]
    running: list[Running] = field(default_factory=list)
    workers: list[WorkerSeen] = field(default_factory=list)
    open: frozenset[str] = frozenset()
    unseen: dict[str, str] = field(default_factory=dict)
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)
    head: tuple[str, float] | None = None
    closed: bool = False
    stuck: str | None = None

    @property
    def left(self) -> int:
        """How many jobs are still to end."""
        several = (self.counts, self.preparations)
        return sum(n for each in several for state, n in each.items() if state not in DONE)


def overview(database: Database, sweep: str) -> Overview | None:
    """What the queue says of a sweep; None where it knows none of this name. Raises QueueAway."""
    with database.reading() as connection:
        row = look(connection, sweep)
        if row is None:
            return None
        now = connection.scalar(select(database_time()))
        mine = jobs.c.sweep == sweep
        counted = connection.execute(
            select(jobs.c.counts, jobs.c.state, func.count())
            .where(mine)
            .group_by("counts", "state")
        ).all()
        running = connection.execute(
            select(jobs.c.name, jobs.c.owner, jobs.c.started, jobs.c.attempts, jobs.c.lease_until)
            .where(mine, jobs.c.state == "running")
            .order_by(jobs.c.started)
            .limit(_SHOWN)
        ).all()
        open_ids = connection.scalars(select(jobs.c.id).where(mine, OPEN, jobs.c.counts)).all()
        new = (mine, NEW, jobs.c.counts)
        unseen = connection.execute(
            select(jobs.c.id, jobs.c.state).where(*new, jobs.c.state.in_(DONE))
        ).all()
        failed = connection.execute(
            select(jobs.c.id, jobs.c.name, jobs.c.result, jobs.c.started)
            .where(*new, jobs.c.state == "failed")
            .order_by(jobs.c.ended)
            .limit(_SHOWN)
        ).all()
        there = connection.execute(
            select(workers).where(workers.c.sweep == sweep).order_by(workers.c.worker)
        ).all()
        stuck = why_nobody_takes(connection, sweep)
    return Overview(
        counts={state: n for counts, state, n in counted if counts},
        preparations={s: n for counts, s, n in counted if not counts and s != "finished"},
        running=[
            Running(
                one.name,
                host_of(one.owner),
                now - one.started,
                one.attempts,
                max(now - one.lease_until, 0.0),
            )
            for one in running
        ],
        workers=[
            WorkerSeen(_short(one.worker), one.slots, one.gpus, now - one.seen) for one in there
        ],
        open=frozenset(open_ids),
        unseen={id: state for id, state in unseen},
        failed={
            one.id: (one.name, result_of(dict(one._mapping)).reason or "no reason recorded")
            for one in failed
        },
        head=(_short(row.head), now - row.head_seen) if has_head(row) else None,
        closed=bool(row.closed),
        stuck=stuck,
    )


def _short(name: Any) -> str:
    return str(name).rpartition(":")[0]
