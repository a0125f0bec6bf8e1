"""Where a study is kept: sqlite, a journal file, or a database server.

A study in the sweep's own folder is a convenience: all that was measured is in the store. Damaged, it
is put aside and begun again. One that the user named is never touched.
"""

import contextlib
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qsweep.base.databases import (
    DatabaseError,
    check_server,
    check_sqlite,
    driver_advice,
    driver_message,
    is_database,
    sqlite_path,
    sqlite_url,
    with_driver,
)
from qsweep.base.disk import is_disk_full
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.locks import FileLock
from qsweep.base.mounts import is_local
from qsweep.base.secrets import hidden_value, scrubbed
from qsweep.search.journal import JournalDamaged, open_journal

_TABLES = ("studies", "version_info")


def open_storage(where: str | None, directory: Path) -> Any:
    """An Optuna storage: sqlite in ``directory``, a journal there, or a database's URL.

    Raises:
        QsweepError: one line, if it cannot be reached; ConfigError if it is no storage at all.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    own = where in (None, "sqlite", "journal")
    if where == "journal" or (where or "").endswith(".journal"):
        file = directory / "study.journal" if own else Path(str(where)).expanduser().absolute()
        with FileLock(directory / ".study.lock"):
            return _reach(lambda: open_journal(file), file, file if own else None)
    url = sqlite_url(directory / "study.db") if own else str(where)
    if not is_database(url):
        raise ConfigError(
            f"search.storage={hidden_value(url)}: sqlite, journal, a file NAME.journal, or a URL "
            "such as postgresql://USER@HOST/DATABASE"
        )
    try:
        database = sqlite_path(url)
        if database is not None and not own:
            check_sqlite(database, _TABLES)
            database.parent.mkdir(parents=True, exist_ok=True)
    except DatabaseError as error:
        raise ConfigError(f"search.storage={hidden_value(url)}: {error}") from error
    if database is None:
        return _reach(lambda: _server(url), url)
    # Two processes that create the tables, or change the journal, at once would trip over each other.
    with FileLock(directory / ".study.lock"):
        return _reach(lambda: _sqlite(url), url, database if own else None)


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what a study's storage raises while it is used into one line.

    Raises:
        QsweepError: what the storage said.
    """
    try:
        yield
    except Exception as error:
        # Not imported before: whoever raised it has.
        modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if not modules & {"optuna", "sqlalchemy", "sqlite3"}:
            raise
        raise QsweepError(
            f"the study cannot be read or written any more: {_words(error)}; the same command goes "
            "on where it stopped"
        ) from error


def _reach(connect: Callable[[], Any], where: Any, own: Path | None = None) -> Any:
    """A storage whose studies can be read; ``own`` is a file to begin again if it is damaged."""
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    def attempt() -> Any:
        storage = connect()
        for study in storage.get_all_studies():
            storage.get_all_trials(study._study_id, deepcopy=False)
        return storage

    for _ in range(5):
        try:
            return attempt()
        except (IntegrityError, ProgrammingError):
            time.sleep(0.5)  # another process is creating the tables at this moment
        except Exception:
            break
    try:
        return attempt()
    except ImportError as error:
        raise ConfigError(
            f"search.storage={hidden_value(str(where))}: {error}; "
            f"{driver_advice(str(where), error.name)}"
        ) from error
    except DatabaseError as error:
        raise ConfigError(f"search.storage={hidden_value(str(where))}: {error}") from error
    except Exception as error:  # whatever a database's driver comes up with
        place = f"search.storage={hidden_value(str(where))}"
        if (damage := _damage(error)) is None:
            words = scrubbed(_words(error), str(where))
            raise QsweepError(f"{place} cannot be reached: {words}") from error
        if own is None:
            raise QsweepError(
                f"{place} is no study that can be read ({damage}); name another, or move it away"
            ) from error
        _put_aside(own, damage)
        return _reach(connect, where)


def _damage(error: Exception) -> str | None:
    """What a study's file holds instead of a study; None where it is merely out of reach."""
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, JournalDamaged):
        return str(error)
    if isinstance(error, SQLAlchemyError):
        # Its subclasses say that the file is locked, read-only or full.
        damaged = type(getattr(error, "orig", None)) is sqlite3.DatabaseError
        return _words(error) if damaged else None
    # Optuna stumbles over what it finds, in its own words or in none.
    unexpected = (ValueError, TypeError, AttributeError, AssertionError, LookupError)
    return "what is in it is none" if isinstance(error, unexpected) else None


def _put_aside(file: Path, why: str) -> None:
    kept = file.with_name(f"{file.name}.damaged")
    file.replace(kept)
    for companion in ("-wal", "-shm", "-journal"):  # of a database that is gone
        file.with_name(file.name + companion).unlink(missing_ok=True)
    print(
        f"note: {file} is no study that can be read ({why}); it is kept as {kept.name}, and another "
        "is begun from what the store holds",
        file=sys.stderr,
        flush=True,
    )


def _words(error: Exception) -> str:
    if is_disk_full(error):
        return "no space left on its disk; free some"
    return driver_message(error)[:200] or type(error).__name__


def _server(url: str) -> Any:
    from optuna.storages import RDBStorage

    check_server(url, _TABLES)
    return RDBStorage(_as_template(with_driver(url)))


def _as_template(url: str) -> str:
    # Optuna fills its schema's version in between braces.
    return url.replace("{", "{{").replace("}", "}}")


def _sqlite(url: str) -> Any:
    from optuna.storages import RDBStorage
    from sqlalchemy import event

    storage = RDBStorage(_as_template(url), engine_kwargs={"connect_args": {"timeout": 60}})

    # A trial is a handful of transactions, and each waits for the disk, unless they are appended to
    # a log. That is as safe from kills of processes; a power cut may take the last transactions.
    # The log's index is memory that the processes share, so they must be on one host.
    mode = "WAL" if is_local(sqlite_path(url) or Path()) else "DELETE"

    def on_connect(connection: Any, _: Any) -> None:
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(storage.engine, "connect", on_connect)
    storage.engine.dispose()  # what is open already has not heard of it
    with storage.engine.connect() as connection:
        # A study that can only be read is of no use, and would only say so after the first trial.
        connection.exec_driver_sql("DELETE FROM studies WHERE 0")
        connection.rollback()
        return storage
