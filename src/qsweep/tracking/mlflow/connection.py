"""The connection to a tracker: made within seconds, and whatever goes wrong in one line."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from qsweep.base.numbers import one_line
from qsweep.base.secrets import scrubbed
from qsweep.tracking.mlflow.journal import TrackingTarget
from qsweep.tracking.settings import RefusedError, TrackerError, public_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "REQUEST_LIMIT_EXCEEDED")
# A dead server must cost seconds, not the minutes that MLflow waits by default. Variables that the
# user has set win.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# Runs that a tracker is asked for at a time.
_PAGE = 1000
_TABLES = ("experiments", "registered_models")
# Until a database that somebody began to make counts as abandoned.
_ABANDONED_S = 600


@contextlib.contextmanager
def tracker_errors(uri: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a TrackerError of one line, without the password."""
    label = public_uri(uri)
    try:
        yield
    except TrackerError:
        raise
    except ImportError as error:
        # A database driver, more often than MLflow itself.
        raise TrackerError(
            f"MLflow at {label}: {one_line(error)}; {driver_advice(uri, error.name)}, "
            "or set tracking=none"
        ) from error
    except Exception as error:
        # Whatever a tracker, its database driver or the network comes up with.
        text = driver_message(error) if is_database(uri) else str(error)
        line = f"MLflow at {label}: {_known_cause(scrubbed(one_line(text), uri))}"
        if getattr(error, "error_code", None) in _REFUSED:
            raise RefusedError(line) from error
        raise TrackerError(line) from error


class Connection:
    """One tracker, for reading as for writing. All errors are TrackerErrors.

    Args:
        target: The tracker; a database is made where there is none.
    """

    def __init__(self, target: TrackingTarget):
        self._target = target
        with self._errors():
            self._mlflow = connect(target.uri)

    def _search(self, experiment: str, clause: str) -> Iterator[Any]:
        """The runs that a clause selects, the newest first, page after page."""
        token = None
        while True:
            page = self._mlflow.search_runs(
                [experiment],
                clause,
                max_results=_PAGE,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return tracker_errors(self._target.uri)


def _known_cause(text: str) -> str:
    # urllib3 wraps the one telling sentence in three layers of exceptions.
    for sign, meaning in (
        ("refused", "connection refused"),
        ("timed out", "it does not answer in time"),
        ("Name or service not known", "no such host"),
        ("name resolution", "no such host"),
        ("database is locked", "its database is locked by another process"),
        ("disk is full", "no space left on the disk"),
        ("No space left", "no space left on the disk"),
    ):
        if sign in text:
            return meaning
    return text if len(text) <= 200 else f"{text[:197]}..."


def connect(uri: str) -> "MlflowClient":
    """A client, its database made if it is sqlite and not there."""
    check_sqlite_tracker(uri)
    path = sqlite_path(uri)
    if path is None and is_database(uri):
        check_server(uri, _TABLES)  # MLflow would try again for two minutes
    if path is not None and not path.exists():
        create_database(path)
    return _client(uri)


def check_sqlite_tracker(uri: str) -> None:
    """Raise a TrackerError at once if a tracker's sqlite file can neither be opened nor made."""
    path = sqlite_path(uri)
    try:
        if path is not None:
            check_sqlite(path, _TABLES)
    except DatabaseError as error:
        raise TrackerError(f"MLflow at {public_uri(uri)}: {error}") from error


def _client(uri: str) -> "MlflowClient":
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=with_driver(uri))


def create_database(path: Path) -> None:
    """Create MLflow's sqlite database, unless somebody else does meanwhile. Takes seconds."""
    # The tables are made by a hundred migrations: a kill in between would leave a database that
    # neither starts nor ends, and two sweeps at once would trip over each other. So it is made
    # aside and appears whole; whoever comes second uses the first one's.
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f".{path.name}.*.tmp"):
        if time.time() - left_over.stat().st_mtime > _ABANDONED_S:
            left_over.unlink(missing_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _client(sqlite_url(aside)).get_experiment("0")
        try:
            os.link(aside, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
