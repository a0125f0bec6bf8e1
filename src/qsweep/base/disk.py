"""A disk that is full or may not be written: seen in whatever a library says, told in one line."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from qsweep.base.errors import ConfigError, QsweepError

# A disk with less room than this is full, bytes.
_LEAST_ROOM = 1 << 20
_WAY_OUT = "free some, or move results with outputs_dir=DIR"
# Where nobody says which disk it is.
FULL = f"no space left on a disk: {_WAY_OUT}"
# How libraries say it that raise no error with a number: safetensors, a process, sqlite, numpy.
_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "database or disk is full",
    "Not enough free space",
)


class DiskFull(QsweepError):
    """A disk is full, and the text says which one and what to do: not that of the results."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says so by its number or in words."""
    return any(
        getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or says_full(str(one))
        for one in _chain(error)
    )


def says_full(text: str) -> bool:
    """Whether a text holds the system's words for a full disk."""
    return any(words in text for words in _WORDS)


def has_no_room(path: Path) -> bool:
    """Whether the disk of a file or folder is full now: what libraries say of it may be anything."""
    place = next((p for p in (path, *path.parents) if p.exists()), None)
    try:
        return place is not None and shutil.disk_usage(place).free < _LEAST_ROOM
    except OSError:
        return False


def disk_full(path: Path) -> str:
    """The line for a full disk."""
    return f"no space left on the disk of {path}: {_WAY_OUT}"


def os_error_message(error: OSError) -> str:
    """The system's words, or what they mean: of a link to nothing it says that the file exists."""
    place = str(error.filename)
    if isinstance(error, FileExistsError) and os.path.islink(place) and not os.path.exists(place):
        return f"is a link to {os.readlink(place)}, which is not there"
    return error.strerror or type(error).__name__


def check_writable(path: Path) -> None:
    """Raise one clear line if nothing can be written below ``path``."""
    probe = path / f".probe.{os.getpid()}.tmp"
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(_LEAST_ROOM))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise ConfigError(disk_full(path)) from error
        raise ConfigError(
            f"outputs_dir={path}: cannot be written ({os_error_message(error)}); choose another"
        ) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        yield following
        seen.add(id(following))
        following = following.__cause__ or following.__context__


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """What the system refuses inside, of files and disks, becomes one clear line.

    Raises:
        ConfigError: a file or folder that was given cannot be read or written.
        QsweepError: a disk is full.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            place = Path(error.filename or ".").parent
            raise QsweepError(f"{disk_full(place)}; what is finished is kept") from error
        if error.filename is None:
            raise
        hint = "" if str(error.filename).endswith(".yaml") else "; outputs_dir=DIR moves results"
        raise ConfigError(f"{error.filename}: {os_error_message(error)}{hint}") from error
