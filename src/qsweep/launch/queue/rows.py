"""The rows of a sweep's jobs, as a head puts them in, keeps them and takes them out.

Each function is given the connection of a transaction, and does its part within it.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, select

from qsweep.launch.job import Job
from qsweep.launch.queue.tables import jobs, needs

_ROWS = 200


def kept_of(
    connection: Connection, sweep: str, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Jobs of an earlier head that stay as they are, by id."""
    asked = {row["id"]: row["fingerprint"] for row in rows}
    columns = (jobs.c.id, jobs.c.state, jobs.c.fingerprint, jobs.c.news)
    earlier = connection.execute(
        select(*columns, jobs.c.counts, jobs.c.settled).where(
            jobs.c.sweep == sweep, jobs.c.state.not_in(("waiting", "ready"))
        )
    ).mappings()
    return {
        row["id"]: dict(row)
        for row in earlier
        if asked.get(row["id"]) == row["fingerprint"] and (row["state"] == "running" or row["news"])
    }


def insert_jobs(
    connection: Connection,
    sweep: str,
    ordered: Sequence[Job],
    rows: Sequence[dict[str, Any]],
    places: Sequence[int],
    ids: set[str],
    met: set[str],
) -> None:
    """Put in those of ``ordered`` whose ids are given, which wait for what is not ``met``.

    Args:
        connection: Of a transaction that keeps the sweep.
        sweep: Its name.
        ordered: Jobs.
        rows: What describes each of them.
        places: Where each stands in the order to start in.
        ids: Which of them.
        met: Ids of jobs that have ended in such a way that others may start.
    """
    values, edges = [], []
    # No two rows of one id, one put in after the other, have a claim's number in common.
    claim = secrets.randbelow(1 << 30)
    for job, row, place in zip(ordered, rows, places, strict=True):
        if job.id not in ids:
            continue
        wanted = [need for need in dict.fromkeys(job.needs) if need not in met]
        values.append(
            {
                "sweep": sweep,
                **row,
                "place": place,
                "state": "waiting" if wanted else "ready",
                "missing": len(wanted),
                "claim": claim,
                "attempts": 0,
                "lost_on": "",
                "news": False,
                "asked": True,
                "settled": True,
            }
        )
        edges += [{"sweep": sweep, "need": need, "job": job.id} for need in wanted]
    for table, all_rows in ((jobs, values), (needs, edges)):
        for chunk in chunks(all_rows):
            connection.execute(insert(table), chunk)


def delete_with_needs(connection: Connection, sweep: str, ids: set[str]) -> None:
    """Take jobs out, with what they need."""
    delete_ids(connection, sweep, ids)
    for chunk in chunks(sorted(ids)):
        mine = and_(needs.c.sweep == sweep, needs.c.job.in_(chunk))
        connection.execute(delete(needs).where(mine))


def is_met(row: Mapping[str, Any]) -> bool:
    """Whether what needs a job of :func:`kept_of` need not wait for it."""
    # Of a preparation that did not finish those that need it may have been told without a head.
    passed_over = is_without_result(row) and row["settled"] and not row["counts"]
    return row["state"] == "finished" or passed_over


def is_without_result(row: Mapping[str, Any]) -> bool:
    """Whether a job of :func:`kept_of` has ended, and not finished."""
    return row["state"] in ("failed", "skipped")


def delete_open(connection: Connection, sweep: str, kept: Mapping[str, Any]) -> int:
    """Take out all that has not ended, but what is ``kept``; how many that were."""
    waiting = and_(jobs.c.sweep == sweep, jobs.c.state.in_(("waiting", "ready")))
    count = connection.execute(delete(jobs).where(waiting)).rowcount
    running = select(jobs.c.id).where(jobs.c.sweep == sweep, jobs.c.state == "running")
    stopped = [id for id in connection.scalars(running) if id not in kept]
    delete_ids(connection, sweep, stopped)
    return count + len(stopped)


def delete_ids(connection: Connection, sweep: str, ids: Iterable[str]) -> None:
    """Take jobs out."""
    for chunk in chunks(sorted(ids)):
        connection.execute(delete(jobs).where(jobs.c.sweep == sweep, jobs.c.id.in_(chunk)))


def chunks(items: Sequence[Any]) -> Iterable[Any]:
    """So many at a time as go into one statement."""
    return (items[start : start + _ROWS] for start in range(0, len(items), _ROWS))
