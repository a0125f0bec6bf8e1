"""What keeps a queue going, whoever comes by: worker or head.

Each function is given the connection of a transaction, and does its part within it.
"""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, and_, case, select, update

from qsweep.launch.flow import for_want_of
from qsweep.launch.job import JobResult
from qsweep.launch.queue.specs import result_of, result_text
from qsweep.launch.queue.tables import OPEN, RUNNING, UNSETTLED, database_time, jobs, needs, sweeps

# In one transaction: short ones, and another process may do the next.
_AT_ONCE = 50
# Ids in one statement, which a server is not to take longer for than a driver waits.
_IN_ONE = 200


def of(sweep: str, id: str) -> Any:
    """The condition that names one job."""
    return and_(jobs.c.sweep == sweep, jobs.c.id == id)


def lock(connection: Connection, sweep: str) -> Any:
    """The sweep's row, kept from whoever else would tell jobs of the end of others; None: no sweep."""
    return connection.execute(_row(sweep).with_for_update()).one_or_none()


def look(connection: Connection, sweep: str) -> Any:
    """The same, without keeping anybody from anything."""
    return connection.execute(_row(sweep)).one_or_none()


def _row(sweep: str) -> Any:
    recent = sweeps.c.head_seen > database_time() - sweeps.c.lease_s
    return select(sweeps, recent.label("recent")).where(sweeps.c.sweep == sweep)


def has_head(row: Any) -> bool:
    """Whether a process that plans and records looks after the sweep of a row of :func:`lock`."""
    return row is not None and row.head is not None and bool(row.recent)


def release(connection: Connection, sweep: str, id: str) -> None:
    """What needs a job goes on without waiting for it any more."""
    goes_on = and_(jobs.c.state == "waiting", jobs.c.missing <= 1)
    for some in _needing(connection, sweep, id):
        connection.execute(
            update(jobs)
            .where(some)
            .values(missing=jobs.c.missing - 1, state=case((goes_on, "ready"), else_=jobs.c.state))
        )


def _needing(connection: Connection, sweep: str, id: str) -> Iterator[Any]:
    """Conditions that name, a part at a time, the jobs that need one."""
    needing = select(needs.c.job).where(needs.c.sweep == sweep, needs.c.need == id)
    ids = connection.scalars(needing).all()
    for start in range(0, len(ids), _IN_ONE):
        yield and_(jobs.c.sweep == sweep, jobs.c.id.in_(ids[start : start + _IN_ONE]))


def expire(connection: Connection, sweep: str) -> bool:
    """Take jobs from workers whose lease has ended: another's turn, or failed after too many.

    Returns whether there were any.
    """
    lost = connection.execute(
        select(jobs, sweeps.c.attempts.label("most"), sweeps.c.lease_s)
        .join(sweeps, sweeps.c.sweep == jobs.c.sweep)
        .where(
            jobs.c.sweep == sweep,
            RUNNING,
            jobs.c.lease_until < database_time(),
        )
        .limit(_AT_ONCE)
        .with_for_update(of=jobs, skip_locked=True)
    ).all()
    for row in lost:
        cause = (
            "its worker was lost {times} (on {hosts}): killed, out of memory, or cut off for longer "
            f"than the lease of {row.lease_s:g} s"
        )
        lose(connection, row, cause)
    return bool(lost)


def lose(connection: Connection, row: Any, cause: str) -> None:
    """A job has lost its worker: it is another's turn, or the job has failed after too many.

    Args:
        connection: Of a transaction that keeps the row.
        row: The job, and ``most``, how many workers it may lose.
        cause: The reason if it has failed, with ``{times}`` and ``{hosts}`` in it.
    """
    hosts = ", ".join(filter(None, [row.lost_on, host_of(row.owner)]))
    values: dict[str, Any] = {"owner": None, "lease_until": None, "lost_on": hosts, "news": True}
    if row.attempts < row.most:
        values |= {"state": "ready"}
    else:
        times = "once" if row.attempts == 1 else f"{row.attempts} times"
        result = JobResult("failed", reason=cause.format(times=times, hosts=hosts))
        values |= {
            "state": "failed",
            "settled": False,
            "ended": database_time(),
            "result": result_text(result),
        }
    connection.execute(update(jobs).where(of(row.sweep, row.id)).values(values))


def host_of(owner: str | None) -> str:
    """The host of a worker."""
    return (owner or "").partition(":")[0]


def settle_alone(connection: Connection, sweep: str) -> bool:
    """Decide about those that need what did not finish, where no head is there to do it.

    What needs a preparation goes on without it; what needs anything else shares its fate.

    Returns whether anything was decided.
    """
    if has_head(lock(connection, sweep)):
        return False
    unsettled = connection.execute(
        select(jobs).where(jobs.c.sweep == sweep, UNSETTLED).order_by(jobs.c.ended).limit(_AT_ONCE)
    ).all()
    for row in unsettled:
        if row.counts:
            _share_fate(connection, sweep, row)
        else:
            release(connection, sweep, row.id)
        connection.execute(update(jobs).where(of(sweep, row.id)).values(settled=True))
    return bool(unsettled)


def _share_fate(connection: Connection, sweep: str, row: Any) -> None:
    result = for_want_of(row.name, result_of(dict(row._mapping)))
    for some in _needing(connection, sweep, row.id):
        connection.execute(
            update(jobs)
            .where(some, jobs.c.state == "waiting")
            .values(
                state=result.status,
                result=result_text(result),
                ended=database_time(),
                news=True,
                settled=False,
            )
        )


def are_undecided(connection: Connection, sweep: str) -> bool:
    """Whether something did not finish, those that need it have not been told, and no head is there."""
    unsettled = select(jobs.c.id).where(jobs.c.sweep == sweep, UNSETTLED).limit(1)
    return (
        not has_head(look(connection, sweep)) and connection.execute(unsettled).first() is not None
    )


def is_over(connection: Connection, sweep: str) -> bool | None:
    """Whether no worker will be needed any more; None where there is no such sweep (yet)."""
    row = look(connection, sweep)
    if row is None:
        return None
    if has_head(row) and not row.closed:
        return False
    left = select(jobs.c.id).where(jobs.c.sweep == sweep, OPEN).limit(1)
    return connection.execute(left).first() is None
