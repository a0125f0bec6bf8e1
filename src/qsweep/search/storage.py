"""Where a study is kept: sqlite, a journal file, or a database server."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qsweep.databases import (
    DatabaseError,
    check_server,
    check_sqlite,
    driver_advice,
    is_database,
    sqlite_path,
    sqlite_url,
    with_driver,
    words_of,
)
from qsweep.errors import ConfigError, QsweepError
from qsweep.locks import FileLock
from qsweep.secrets import hidden_value, scrubbed

# File systems of one host; what is not among them may be shared by several.
_LOCAL = {
    "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs", "overlay", "apfs",
}  # fmt: skip
_TABLES = ("studies", "version_info")


def open_storage(where: str | None, directory: Path) -> Any:
    """An Optuna storage: sqlite in ``directory``, a journal there, or a database's URL.

    Raises:
        QsweepError: one line, if it cannot be reached; ConfigError if it is no storage at all.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if where == "journal" or (where or "").endswith(".journal"):
        from optuna.storages.journal import JournalFileBackend

        file = directory / "study.journal" if where == "journal" else Path(str(where))
        return _reach(lambda: optuna.storages.JournalStorage(JournalFileBackend(str(file))), file)
    url = sqlite_url(directory / "study.db") if where in (None, "sqlite") else str(where)
    if not is_database(url):
        raise ConfigError(
            f"search.storage={hidden_value(url)}: sqlite, journal, a file NAME.journal, or a URL "
            "such as postgresql://USER@HOST/DATABASE"
        )
    try:
        database = sqlite_path(url)
        if database is not None:
            check_sqlite(database, _TABLES)
            database.parent.mkdir(parents=True, exist_ok=True)
    except DatabaseError as error:
        raise ConfigError(f"search.storage={hidden_value(url)}: {error}") from error
    if database is None:
        return _reach(lambda: _server(url), url)
    # Two processes that create the tables, or change the journal, at once would trip over each other.
    with FileLock(directory / ".study.lock"):
        return _reach(lambda: _sqlite(url), url)


def _reach(connect: Callable[[], Any], where: Any) -> Any:
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    for _ in range(5):
        try:
            return connect()
        except (IntegrityError, ProgrammingError):
            time.sleep(0.5)  # another process is creating the tables at this moment
        except Exception:
            break
    try:
        return connect()
    except ImportError as error:
        raise ConfigError(
            f"search.storage={hidden_value(str(where))}: {error}; "
            f"{driver_advice(str(where), error.name)}"
        ) from error
    except DatabaseError as error:
        raise ConfigError(f"search.storage={hidden_value(str(where))}: {error}") from error
    except Exception as error:  # whatever a database's driver comes up with
        raise QsweepError(
            f"search.storage={hidden_value(str(where))} cannot be reached: "
            f"{scrubbed(words_of(error), str(where))[:200]}"
        ) from error


def _server(url: str) -> Any:
    from optuna.storages import RDBStorage

    check_server(url, _TABLES)
    return RDBStorage(with_driver(url))


def _sqlite(url: str) -> Any:
    from optuna.storages import RDBStorage
    from sqlalchemy import event

    storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})

    # A trial is a handful of transactions, and each waits for the disk, unless they are appended to
    # a log. That is as safe from kills of processes; a power cut may take the last transactions.
    # The log's index is memory that the processes share, so they must be on one host.
    mode = "WAL" if _is_local(sqlite_path(url) or Path()) else "DELETE"

    def on_connect(connection: Any, _: Any) -> None:
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(storage.engine, "connect", on_connect)
    storage.engine.dispose()  # what is open already has not heard of it
    with storage.engine.connect():
        return storage


def _is_local(file: Path) -> bool:
    """Whether a file lies on a disk of this host, for all that can be seen of it."""
    import psutil

    place = file.absolute().resolve()
    holding = [p for p in psutil.disk_partitions(all=True) if place.is_relative_to(p.mountpoint)]
    mount = max(holding, key=lambda p: len(p.mountpoint), default=None)
    return mount is not None and mount.fstype in _LOCAL
