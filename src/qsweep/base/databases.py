"""URLs of databases: sqlite files under any path, PostgreSQL by one driver, and what is wrong."""

import importlib.util
import os
import re
import sqlite3
import stat
from collections.abc import Collection
from pathlib import Path
from urllib.parse import quote

from qsweep.base.errors import QsweepError

SCHEMES = ("sqlite", "postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle")
_SQLITE = "sqlite:///"
# The first is what the extra "postgresql" installs; MLflow and Optuna work with each.
_POSTGRESQL_DRIVERS = ("pg8000", "psycopg", "psycopg2")
# Packages that are not called like the module in them.
_PACKAGES = {
    "MySQLdb": "mysqlclient",
    "psycopg2": "psycopg2-binary",
    "psycopg": '"psycopg[binary]"',
}
# Seconds until a server that does not answer is given up.
_CONNECT_S = 10


# Classes of SQLSTATE of what is as wrong later: not supported, data, integrity, login, no such
# database or schema, syntax or rights.
_REFUSALS = ("0A", "22", "23", "28", "3D", "3F", "42")


class DatabaseError(QsweepError):
    """A database cannot be used; the text says why, without its URL."""


def scheme_of(url: str) -> str:
    """``postgresql`` of ``postgresql+pg8000://...``; empty if it is no URL."""
    scheme, separator, _ = url.partition("://")
    return scheme.partition("+")[0].lower() if separator else ""


def is_database(url: str) -> bool:
    """Whether a URL is that of a database, sqlite included."""
    return scheme_of(url) in SCHEMES


def sqlite_url(path: Path) -> str:
    """The URL of a sqlite file, whatever characters its path has."""
    if not set("%?#") & set(str(path)):
        return f"{_SQLITE}{path}"
    from sqlalchemy import URL

    # With the driver in it, since MLflow makes a folder of whatever stands behind sqlite:///.
    return URL.create("sqlite+pysqlite", database=str(path)).render_as_string(hide_password=False)


def sqlite_path(url: str) -> Path | None:
    """The file behind a sqlite URL; None for every other database.

    Raises:
        DatabaseError: the URL names no file.
    """
    if scheme_of(url) != "sqlite":
        return None
    if url.startswith(_SQLITE) and not set("%?#") & set(url):
        name = url.removeprefix(_SQLITE)
    else:
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            parts = make_url(url)
        except (ArgumentError, ValueError) as error:
            raise DatabaseError("it is no URL of a sqlite file; write sqlite:///FILE") from error
        if parts.host:
            raise DatabaseError("sqlite has no host; write sqlite:///FILE")
        name = parts.database or ""
    name = name.removeprefix("file:").partition("?")[0] if name.startswith("file:") else name
    if name in ("", ":memory:") or "mode=memory" in url:
        raise DatabaseError("names no file, and what is in memory is lost; write sqlite:///FILE")
    return Path(name)


def with_driver(url: str) -> str:
    """A URL of PostgreSQL without a driver gets the one that is installed; others stay.

    SQLAlchemy alone would take psycopg2, which nothing here installs.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in ("postgresql", "postgres"):
        return url
    installed = [name for name in _POSTGRESQL_DRIVERS if importlib.util.find_spec(name)]
    return f"postgresql+{[*installed, _POSTGRESQL_DRIVERS[0]][0]}://{rest}"


def driver_advice(url: str, module: str | None) -> str:
    """What to install where a database's driver is missing."""
    if scheme_of(url) in ("postgresql", "postgres") and "+pg8000:" in with_driver(url):
        return 'pip install "qsweep[postgresql]"'
    return f"pip install {_PACKAGES.get(str(module), module or 'its driver')}"


def check_sqlite(path: Path, tables: Collection[str] = ()) -> None:
    """Find out at once whether a sqlite file can be opened, or made where there is none.

    ``tables`` are some that only a database of the wanted kind has, one of which must be there.
    Libraries try again for a minute, and may put their tables into somebody else's database.

    Raises:
        DatabaseError: it cannot; the line says why.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return _check_folder(path)
    except OSError as error:
        raise DatabaseError(f"cannot be opened: {error.strerror or error}") from error
    if stat.S_ISDIR(mode):
        raise DatabaseError(
            f"is a directory, not a database; give a file in it, {path.name}/NAME.db"
        )
    if not stat.S_ISREG(mode):
        raise DatabaseError("is not a regular file")
    if not os.access(path, os.R_OK | os.W_OK):
        raise DatabaseError("may not be read and written by this user")
    _check_folder(path)  # sqlite keeps a journal beside it
    try:
        with open(path, "rb") as file:
            head = file.read(16)
        if head and head != b"SQLite format 3\0":
            raise DatabaseError("is no sqlite database")
        found = _tables(path) if head else set()
    except OSError as error:
        raise DatabaseError(f"cannot be read: {error.strerror or error}") from error
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return  # at the moment: whoever uses it will wait
        raise DatabaseError(f"cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        raise DatabaseError(f"is damaged: {error}") from error
    if tables and found and not found & set(tables):
        raise DatabaseError(f"is another program's database: it has no table {min(tables)!r}")


def check_server(url: str, tables: Collection[str] = ()) -> None:
    """Connect to a database server once, within seconds.

    ``tables`` are some of a database of the wanted kind. Beside other tables these may be made, but
    two programs that keep the version of their tables in one place (Alembic's) break each other.

    Raises:
        DatabaseError: the database has another program's tables, with their version.
        Exception: whatever its driver comes up with, an ImportError where that is missing.
    """
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.pool import NullPool

    url = with_driver(url)
    engine = create_engine(url, poolclass=NullPool, connect_args=connect_arguments(url))
    with engine.connect() as connection:
        found = set(inspect(connection).get_table_names())
    if "alembic_version" in found and tables and not found & set(tables):
        raise DatabaseError("is another program's database; make one of its own for this")


def connect_arguments(url: str) -> dict[str, int]:
    """What a driver of PostgreSQL is given so that a server that does not answer is given up."""
    timeouts = {"pg8000": "timeout", "psycopg": "connect_timeout", "psycopg2": "connect_timeout"}
    option = timeouts.get(with_driver(url).partition("://")[0].partition("+")[2])
    return {option: _CONNECT_S} if option else {}


def driver_message(error: BaseException) -> str:
    """What a driver says, without what SQLAlchemy wraps around it."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if cause.args and isinstance(cause.args[0], dict) and "M" in cause.args[0]:
            return str(cause.args[0]["M"])  # pg8000 hands on all fields of the server's message
    return " ".join(str(causes[-1]).split("(Background")[0].split())


def is_refusal(error: BaseException) -> bool:
    """Whether a database has answered, and what is wrong will be wrong later, too.

    Args:
        error: What SQLAlchemy or a driver raised.
    """
    from sqlalchemy import exc

    cause = getattr(error, "orig", None) or error
    if (code := _sqlstate(cause)) is not None:
        return code.startswith(_REFUSALS)
    kinds = (exc.DataError, exc.IntegrityError, exc.ProgrammingError, exc.NotSupportedError)
    return isinstance(error, (*kinds, UnicodeError)) or bool(
        re.search(r"password|authentication", driver_message(error), re.IGNORECASE)
    )


def _sqlstate(error: BaseException) -> str | None:
    """The server's code of an error, wherever its driver has it."""
    fields = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    found = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or fields.get("C")
    return found if isinstance(found, str) else None


def _check_folder(path: Path) -> None:
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise DatabaseError(f"cannot be made: {folder} is no directory")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DatabaseError(f"cannot be made or changed: {folder} may not be written by this user")


def _tables(path: Path) -> set[str]:
    connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=1)
    try:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {str(name) for (name,) in rows} - {"alembic_version"}
    finally:
        connection.close()
