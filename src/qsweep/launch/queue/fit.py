"""Whether the workers that are there can take what waits for them."""

from typing import Any

from sqlalchemy import Connection, select

from qsweep.launch.local.slots import Slots, why_unplaceable
from qsweep.launch.queue.tables import READY, RUNNING, database_time, jobs, workers

# A worker whose last heartbeat is older than this is gone, or cut off.
ALIVE_S = 45.0


def live_workers(connection: Connection, sweep: str) -> list[Any]:
    """The workers that have said of late that they are there."""
    recent = workers.c.seen > database_time() - ALIVE_S
    return list(connection.execute(select(workers).where(workers.c.sweep == sweep, recent)))


def why_nobody_takes(connection: Connection, sweep: str) -> str | None:
    """Why workers are there and yet nothing will run, in one line; None where something may."""
    mine = jobs.c.sweep == sweep
    if connection.execute(select(jobs.c.id).where(mine, RUNNING).limit(1)).first() is not None:
        return None
    there = live_workers(connection, sweep)
    devices = connection.scalars(
        select(jobs.c.device).where(mine, READY).distinct().order_by(jobs.c.device)
    ).all()
    if not there or not devices or any(_takes(one, device) for one in there for device in devices):
        return None
    count, gpus = len(there), max(one.gpus for one in there)
    return (
        f"no job can start: what is ready asks for {', '.join(devices)}, and the {count} "
        f"worker{'s' * (count != 1)} there {'have' if count != 1 else 'has'} "
        f"{gpus or 'no'} GPU{'s' * (gpus != 1)}; start workers where there are such GPUs"
    )


def _takes(worker: Any, device: str) -> bool:
    slots = Slots(worker.slots, tuple(map(str, range(worker.gpus))))
    return why_unplaceable(slots, device) is None
