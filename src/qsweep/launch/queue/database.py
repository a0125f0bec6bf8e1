"""The database behind a queue: opened once, used in short transactions, whose errors are one line."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect
from sqlalchemy.exc import SQLAlchemyError

from qsweep.base.databases import (
    DatabaseError,
    check_server,
    check_sqlite,
    connect_arguments,
    driver_advice,
    driver_message,
    is_refusal,
    scheme_of,
    sqlite_path,
    with_driver,
)
from qsweep.base.errors import ConfigError
from qsweep.base.secrets import hidden_value, scrubbed
from qsweep.launch.interrupts import finishing
from qsweep.launch.queue.tables import metadata

T = TypeVar("T")

_TABLES = ("qsweep_jobs", "qsweep_sweeps")
# How long one process waits for another's transaction on a sqlite file; they take milliseconds.
_BUSY_S = 30
# How long a server may take for a statement; drivers have one time-out for that and for connecting.
_ANSWER_S = 60
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0


class QueueAway(DatabaseError):
    """The database does not answer, or not with what it should; it may again in a while."""


class QueueRefused(DatabaseError):
    """The database does not take what it is given, and will not later either."""


class Database:
    """The database that a URL names, with the queue's tables in it.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://USER@HOST/DATABASE``.
        option: What the URL was given as, for messages.

    Raises:
        ConfigError: the URL names no database that can hold a queue, or whose login it is not.
        QueueAway: the database's server cannot be reached.
    """

    def __init__(self, url: str, option: str = "queue"):
        self.url = url
        self.where = f"{option}={hidden_value(url)}"
        if scheme_of(url) not in ("sqlite", "postgresql", "postgres"):
            raise ConfigError(
                f"{self.where}: no database for a queue; sqlite:///FILE on one machine, "
                "postgresql://USER@HOST/DATABASE for several"
            )
        try:
            self._engine = self._open()
        except ImportError as error:
            raise ConfigError(f"{self.where}: {error}; {driver_advice(url, error.name)}") from error
        except DatabaseError as error:
            raise ConfigError(f"{self.where}: {error}") from error
        except (SQLAlchemyError, OSError) as error:
            if is_refusal(error):
                raise ConfigError(f"{self.where}: {self._words(error)}") from error
            raise self._away(error) from error
        except Exception as error:  # what else a driver says of a URL's parts
            raise ConfigError(f"{self.where}: {self._words(error)}") from error

        self._reads = self._engine.execution_options(qsweep_reads=True)

    def _open(self) -> Engine:
        file = sqlite_path(self.url)
        if file is None:
            check_server(self.url)
        else:
            check_sqlite(file, _TABLES)
            file.parent.mkdir(parents=True, exist_ok=True)
        engine = _engine(self.url)
        for attempt in range(5):
            try:
                metadata.create_all(engine)
                break
            except SQLAlchemyError:
                if attempt == 4:
                    raise
                time.sleep(0.2)  # another process is creating the tables at this moment
        _check_columns(engine)
        return engine

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes. Raises QueueAway or QueueRefused: nothing of it is written."""
        with self._transaction(self._engine) as connection:
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads, and keeps nobody waiting. Raises as :meth:`writing` does."""
        with self._transaction(self._reads) as connection:
            yield connection

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        with _uninterrupted(), self._errors(), engine.begin() as connection:
            try:
                yield connection
            except UnicodeError:
                connection.invalidate()  # half a message may have been sent
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, OSError, UnicodeError) as error:
            if is_refusal(error):
                raise QueueRefused(f"{self.where} refuses: {self._words(error)}") from error
            raise self._away(error) from error

    def _away(self, error: Exception) -> QueueAway:
        return QueueAway(f"{self.where} cannot be used: {self._words(error)}")

    def _words(self, error: Exception) -> str:
        words = scrubbed(driver_message(error), self.url)[:200]
        return words or type(error).__name__


def _check_columns(engine: Engine) -> None:
    # To sqlite a column that is not there is an error like any other, which may pass.
    found = inspect(engine)
    differing = []
    for name, table in metadata.tables.items():
        wanted = {column.name for column in table.c}
        there = {column["name"] for column in found.get_columns(name)}
        for word, columns in (("without", wanted - there), ("with", there - wanted)):
            if columns:
                differing.append(f"{name} {word} {', '.join(sorted(columns))}")
    if differing:
        raise DatabaseError(
            f"holds the queue of another version of qsweep ({', '.join(differing)}); give another "
            "database, or the version that made it"
        )


def _uninterrupted() -> contextlib.AbstractContextManager[None]:
    # A signal that is raised between the database's BEGIN and our knowing of it leaves a transaction
    # open, for which everybody else would wait.
    main = threading.current_thread() is threading.main_thread()
    return finishing() if main else contextlib.nullcontext()


def _engine(url: str) -> Engine:
    if sqlite_path(url) is None:
        # A connection that was open as the server went away is found out before it is used.
        patience = dict.fromkeys(connect_arguments(url), _ANSWER_S)
        return create_engine(with_driver(url), pool_pre_ping=True, connect_args=patience)
    engine = create_engine(url, connect_args={"timeout": _BUSY_S})

    @event.listens_for(engine, "connect")
    def _connect(connection, _) -> None:  # type: ignore[no-untyped-def]
        connection.isolation_level = None  # transactions are begun below, not by the driver
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads first and then finds another writing could only fail.
        reads = connection.get_execution_options().get("qsweep_reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def patiently(
    call: Callable[[], T],
    patience_s: float,
    *,
    say: Callable[[str], None] = lambda _: None,
    pause: Callable[[float], object] = time.sleep,
) -> T:
    """Call until the database answers, ever more rarely, for so many seconds.

    Args:
        call: What to do; it may be done again, since what failed has written nothing.
        patience_s: After this long it is given up.
        say: Told once that it does not answer.
        pause: Waits for so many seconds.

    Raises:
        QueueAway: it has not answered for so long.
    """
    began, wait = time.monotonic(), _FIRST_PAUSE_S
    told = False
    while True:
        try:
            return call()
        except QueueAway as error:
            away = time.monotonic() - began
            if away + wait > patience_s:
                raise QueueAway(f"{error} (for {away:.0f} s)") from error
            if not told:
                say(f"{error}; trying again for {patience_s:.0f} s")
            told = True
        pause(wait)
        wait = min(2 * wait, _LONGEST_PAUSE_S)
