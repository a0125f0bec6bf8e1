"""The queue's tables, and the database's own time.

Whoever reads a clock reads the database's: machines of a cluster may be minutes apart.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    literal_column,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

metadata = MetaData()

_Name = String(255)
_Seconds = Float(53)

sweeps = Table(
    "qsweep_sweeps",
    metadata,
    Column("sweep", _Name, primary_key=True),
    Column("head", _Name, comment="the process that plans and records; null: none"),
    Column("head_seen", _Seconds, nullable=False, comment="its last heartbeat"),
    Column("closed", Boolean, nullable=False, comment="no more jobs will come"),
    Column("lease_s", _Seconds, nullable=False),
    Column("attempts", Integer, nullable=False, comment="how often a job may lose its worker"),
    Column("slots", Integer, nullable=False, comment="the capacity that was planned for"),
    Column("memory", BigInteger, nullable=False),
)

jobs = Table(
    "qsweep_jobs",
    metadata,
    Column("sweep", _Name, primary_key=True),
    Column("id", _Name, primary_key=True),
    Column("name", Text, nullable=False),
    Column("spec", Text, nullable=False, comment="JSON; see specs.py"),
    Column("fingerprint", String(64), nullable=False, comment="of what it calls, and with what"),
    Column("counts", Boolean, nullable=False, comment="no preparation"),
    Column("device", String(32), nullable=False),
    Column("place", BigInteger, nullable=False, comment="the order to start in"),
    # waiting, ready, running, finished, failed, skipped
    Column("state", String(16), nullable=False),
    Column("missing", Integer, nullable=False, comment="needs that are not met"),
    Column("owner", _Name, comment="the worker that has it"),
    Column("claim", Integer, nullable=False, comment="counts claims: the fence against stale ones"),
    Column("attempts", Integer, nullable=False),
    Column("lost_on", Text, nullable=False, comment="hosts whose worker was lost with it"),
    Column("lease_until", _Seconds),
    Column("started", _Seconds),
    Column("ended", _Seconds),
    Column("result", Text, comment="JSON of a JobResult"),
    Column("log", Text, comment="the end of what it wrote"),
    Column("news", Boolean, nullable=False, comment="changed since the head last looked"),
    Column("asked", Boolean, nullable=False, comment="the head waits for what becomes of it"),
    Column("settled", Boolean, nullable=False, comment="those that need it have been told"),
)

READY = jobs.c.state == literal_column("'ready'")
RUNNING = jobs.c.state == literal_column("'running'")
OPEN = jobs.c.ended.is_(None)
NEW = jobs.c.news.is_(True)
ASKED = jobs.c.asked.is_(True)
UNSETTLED = jobs.c.settled.is_(False)
"""Conditions that are written out, since only then an index of such rows alone is used for them."""


def _index(name: str, condition: Any, *columns: Column[Any]) -> None:
    # An index of all rows would be taken for what looks up a few rows by their ids, too, by a server
    # that has no statistics of a table that was filled a moment ago.
    Index(name, *columns, sqlite_where=condition, postgresql_where=condition)


_index("qsweep_jobs_ready", READY, jobs.c.sweep, jobs.c.device, jobs.c.place)
_index("qsweep_jobs_running", RUNNING, jobs.c.sweep, jobs.c.lease_until)
_index("qsweep_jobs_open", OPEN, jobs.c.sweep)
_index("qsweep_jobs_news", and_(NEW, ASKED), jobs.c.sweep, jobs.c.ended)
_index("qsweep_jobs_unsettled", UNSETTLED, jobs.c.sweep)

needs = Table(
    "qsweep_needs",
    metadata,
    Column("sweep", _Name, primary_key=True),
    Column("need", _Name, primary_key=True),
    Column("job", _Name, primary_key=True),
)

workers = Table(
    "qsweep_workers",
    metadata,
    Column("sweep", _Name, primary_key=True),
    Column("worker", _Name, primary_key=True),
    Column("host", _Name, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("memory", BigInteger, nullable=False, comment="bytes that were free as it began"),
    Column("started", _Seconds, nullable=False),
    Column("seen", _Seconds, nullable=False, comment="its last heartbeat"),
)

DONE = ("finished", "failed", "skipped")


class database_time(FunctionElement[float]):  # noqa: N801  # reads as the SQL function that it is
    """Seconds since the epoch by the database's clock, whoever asks."""

    type = _Seconds
    inherit_cache = True


@compiles(database_time, "sqlite")
def _sqlite_time(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(database_time, "postgresql")
def _postgresql_time(*_: Any, **__: Any) -> str:
    # Not now(), which is the transaction's beginning.
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"
