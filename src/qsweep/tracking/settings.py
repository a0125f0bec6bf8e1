"""Which tracker, and what it is called in messages. No MLflow import."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from qsweep.base.databases import (
    SCHEMES,
    DatabaseError,
    scheme_of,
    sqlite_path,
    sqlite_url,
    with_driver,
)
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.files import shown
from qsweep.base.names import check_label
from qsweep.base.secrets import hidden_value, without_login


class TrackerError(QsweepError):
    """The tracker cannot be used now; results stay on disk and can be logged later."""


class RefusedError(TrackerError):
    """The tracker works, but does not take this one run."""


@dataclass(frozen=True)
class TrackingConfig:
    """Where results are logged.

    ``uri`` is any MLflow tracking URI; None is sqlite in the outputs folder, with the artifacts
    beside it. ``experiment`` is created if it does not exist.
    """

    enabled: bool = True
    uri: str | None = None
    experiment: str = "qsweep"

    def __post_init__(self) -> None:
        check_label(self.experiment, "tracking.experiment")
        if hidden_value(self.experiment) != self.experiment:
            raise ConfigError(
                f"tracking.experiment={hidden_value(self.experiment)}: holds a password, and is "
                "shown to everybody"
            )
        if self.uri is not None:
            _check(self.uri)


def _check(uri: str) -> None:
    label = f"tracking.uri={public_uri(uri)}"
    named = "://" in uri or uri.startswith(("databricks", "arn:"))
    if not named and scheme_of(uri.replace(":", "://", 1)) in SCHEMES:
        raise ConfigError(f"{label}: is no URL; write sqlite:///FILE or postgresql://HOST/DATABASE")
    if not named or uri.startswith("file:"):
        raise ConfigError(
            f"{label}: MLflow does not track in plain folders; "
            "give sqlite:///FILE or http://HOST:PORT"
        )
    try:
        sqlite_path(uri)
    except DatabaseError as error:
        raise ConfigError(f"{label}: {error}") from error


def resolved_uri(uri: str | None, outputs: Path) -> str:
    """The URI with an absolute path, so that it means the same in every folder."""
    if uri is None:
        return sqlite_url(outputs.absolute() / "mlflow.db")
    path = sqlite_path(uri)
    return uri if path is None else sqlite_url(path.expanduser().absolute())


def public_uri(uri: str) -> str:
    """The URI without its password, for messages and files."""
    return hidden_value(uri)


def is_server(uri: str) -> bool:
    """Whether a tracker is an MLflow server."""
    return scheme_of(uri) in ("http", "https")


def server_page(uri: str) -> str:
    """The address of a server's UI. A browser asks for the login itself."""
    return without_login(uri).rstrip("/")


def ui_line(config: TrackingConfig, outputs: Path) -> str | None:
    """What opens the MLflow UI on the results; None where nothing is tracked."""
    if not config.enabled:
        return None
    uri = resolved_uri(config.uri, outputs)
    if is_server(uri):
        return server_page(uri)
    if (path := sqlite_path(uri)) is not None:
        uri = sqlite_url(Path(shown(path)))
    return f"mlflow ui --backend-store-uri {shlex.quote(public_uri(with_driver(uri)))}"


def sync_command(outputs: Path) -> str:
    """The command that logs what is missing."""
    same = outputs.absolute() == Path("outputs").absolute()
    place = "" if same else f" --outputs {shlex.quote(str(outputs))}"
    return f"qsweep sync{place}"
