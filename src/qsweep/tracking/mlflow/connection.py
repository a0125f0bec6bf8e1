"""Connections to MLflow's trackers, and the databases of those that are files."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qsweep.base.databases import (
    DatabaseError,
    check_server,
    check_sqlite,
    is_database,
    sqlite_path,
    sqlite_url,
    with_driver,
)
from qsweep.tracking.settings import TrackerError, public_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

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

_TABLES = ("experiments", "registered_models")

_ABANDONED_S = 600


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
