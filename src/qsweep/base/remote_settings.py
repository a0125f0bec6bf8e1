"""Where a copy of the store lies that other machines share, and whether it is written to."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from qsweep.base.errors import ConfigError

_FORMS = "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, or file:///FOLDER for a folder that is mounted"


@dataclass(frozen=True)
class RemoteSettings:
    """The group ``store`` of a configuration.

    Args:
        remote: The URL of the remote copy, None for none. It holds no login: the libraries behind it
            take theirs from the environment, or from files of their own.
        push: Whether what is made here is sent there.

    Raises:
        ConfigError: The URL is of no kind that can be shared, or it holds a login.
    """

    remote: str | None = None
    push: bool = True

    def __post_init__(self):
        if self.remote is not None:
            object.__setattr__(self, "remote", _checked(self.remote))  # frozen

    @property
    def address(self) -> dict[str, Any]:
        """The same as JSON."""
        return {"remote": self.remote, "push": self.push}


def _checked(url: str) -> str:
    """A URL without a slash at its end. Raises ConfigError."""
    scheme, _, rest = url.partition("://")
    # Looked for in the text: a secret may hold a slash, and end what a parser takes for the host.
    if scheme.lower() in ("s3", "gs") and ("@" in rest or ":" in rest.partition("/")[0]):
        raise ConfigError(
            f"store.remote={scheme}://…: takes no login, which would end in commands and "
            "logs; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "GOOGLE_APPLICATION_CREDENTIALS, in the environment"
        )
    where = (
        f"store.remote={'…' if '@' in url else url}"  # in a URL of another kind it may be one, too
    )
    try:
        parts = urlsplit(url)
    except ValueError as error:  # a bracket without its other half
        raise ConfigError(f"{where}: is no URL ({error}); {_FORMS}") from error
    if parts.scheme == "memory":
        raise ConfigError(f"{where}: memory is of one process, and no other sees it; {_FORMS}")
    if parts.scheme not in ("s3", "gs", "file"):
        raise ConfigError(f"{where}: no such kind of store; {_FORMS}")
    if parts.query or parts.fragment:
        quoted = "; in a folder's name they are %3F and %23" if parts.scheme == "file" else ""
        raise ConfigError(f"{where}: takes no ? and no #{quoted}; {_FORMS}")
    if parts.scheme == "file":
        if parts.netloc or not parts.path.strip("/"):
            raise ConfigError(f"{where}: names no folder; {_FORMS}")
    elif not parts.netloc:
        raise ConfigError(f"{where}: names no bucket; {_FORMS}")
    if scheme != parts.scheme:  # file:/FOLDER and S3://BUCKET are URLs, and no driver takes them
        raise ConfigError(f"{where}: write it as {_FORMS}")
    return url.rstrip("/")
