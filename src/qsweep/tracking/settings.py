"""Which tracker, and what it is called in messages. No MLflow import."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from qsweep.errors import ConfigError, QsweepError

_SQLITE = "sqlite:///"
HIDDEN = "***"


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
        if not self.experiment:
            raise ConfigError("tracking.experiment: must not be empty")
        uri = self.uri or _SQLITE
        named = "://" in uri or uri.startswith(("databricks", "arn:"))
        if not named or uri.startswith("file:"):
            raise ConfigError(
                f"tracking.uri={uri}: MLflow does not track in plain folders; "
                "give sqlite:///FILE or http://HOST:PORT"
            )


def resolved_uri(uri: str | None, outputs: Path) -> str:
    """The URI with an absolute path, so that it means the same in every folder."""
    if uri is None:
        return f"{_SQLITE}{outputs.absolute() / 'mlflow.db'}"
    if uri.startswith(_SQLITE):
        return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).expanduser().absolute()}"
    return uri


def sqlite_path(uri: str) -> Path | None:
    """The file behind a sqlite URI; None for every other tracker."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def public_uri(uri: str) -> str:
    """The URI without its password, for messages and files."""
    secret = secret_of(uri)
    return uri.replace(f":{secret}@", f":{HIDDEN}@") if secret else uri


def secret_of(uri: str) -> str | None:
    """The password in a URI, as written there."""
    try:
        return urlsplit(uri).password or None
    except ValueError:
        return None


def ui_line(config: TrackingConfig, outputs: Path) -> str | None:
    """What opens the MLflow UI on the results; None where nothing is tracked."""
    if not config.enabled:
        return None
    uri = resolved_uri(config.uri, outputs)
    if uri.startswith(("http:", "https:")):
        return public_uri(uri)
    if (path := sqlite_path(uri)) is not None:
        uri = f"{_SQLITE}{_short(path)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(public_uri(uri))}"


def sync_command(outputs: Path) -> str:
    """The command that logs what is missing."""
    usual = outputs.absolute() == Path("outputs").absolute()
    return "python -m qsweep.sync" + ("" if usual else f" --outputs {shlex.quote(str(outputs))}")


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
