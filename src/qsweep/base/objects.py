"""Named objects in a bucket or in a mounted folder: written whole or not at all, read, listed.

fsspec does the work, with s3fs or gcsfs behind it, which find credentials by themselves, in the
environment or in files of their own. What fails for a moment is tried again; what fails for good is
one line.
"""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from qsweep.base.disk import is_disk_full
from qsweep.base.errors import QsweepError, in_one_line
from qsweep.base.files import open_atomic, write_bytes
from qsweep.base.owners import owner
from qsweep.base.secrets import HIDDEN, scrubbed

# Pauses before an operation is tried again; drivers try several times by themselves.
_PAUSES_S = (0.5, 2.0)
# What trying again does not change, beside a full disk.
_FINAL = (
    PermissionError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)
_FINAL_NUMBERS = (errno.EINVAL, errno.EROFS, errno.EPERM, errno.ENAMETOOLONG)
# Of botocore, which knows no numbers.
_FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError")
_DRIVERS = {
    "s3": ("s3fs", 'pip install "qsweep[s3]"'),
    "gs": ("gcsfs", "pip install gcsfs"),
}
# Attempts of the driver's own are few: whoever waits has something else to do.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {
            "connect_timeout": 10,
            "read_timeout": 60,
            "retries": {"max_attempts": 2, "mode": "standard"},
        }
    }
}
# Their values are never shown, wherever a driver quotes them.
_SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")

T = TypeVar("T")


class RemoteError(QsweepError):
    """A bucket or folder cannot be reached, read or written; the text says which and why."""


class Objects:
    """Objects below one URL, by names with slashes.

    Methods raise :class:`RemoteError` where nothing says otherwise.

    Args:
        url: ``s3://BUCKET/FOLDER``, ``gs://BUCKET/FOLDER`` or ``file:///FOLDER``, where the folder is
            quoted as in every URL (``%20``).
    """

    def __init__(self, url: str):
        self.url = url
        self._scheme, _, self._root = url.partition("://")
        self._in_folder = self._scheme == "file"
        if self._in_folder:
            self._root = unquote(self._root)

    def read(self, name: str) -> bytes | None:
        """An object's bytes, None if there is none."""

        def read() -> bytes | None:
            try:
                return bytes(self._system.cat_file(self._path(name)))
            except FileNotFoundError:
                self.require_folder()
                return None

        return self._tried("read", read)

    def write(self, name: str, content: bytes) -> None:
        """Put an object into its place in one go."""
        path = self._path(name)
        if self._in_folder:
            self._tried("written", lambda: self._write_file(name, content))
        else:
            self._tried("written", lambda: self._system.pipe_file(path, content))

    def upload(self, file: Path, name: str) -> None:
        """Put a file into its place, in parts if it is large; nobody sees a part of it."""
        if self._in_folder:
            self._tried("written", lambda: self._copy(file, name))
        else:
            self._tried("written", lambda: self._system.put_file(str(file), self._path(name)))

    def download(self, name: str, file: Path) -> bool:
        """Write an object into a file; returns whether there is one."""

        def download() -> bool:
            try:
                self._system.get_file(self._path(name), str(file))
            except FileNotFoundError:
                self.require_folder()
                return False
            return True

        return self._tried("read", download)

    def names(self, prefix: str) -> dict[str, int]:
        """The objects below a prefix, which is empty or ends in a slash; sizes in bytes."""
        return {name: int(info["size"]) for name, info in self._found(prefix).items()}

    def times(self, prefix: str) -> dict[str, float]:
        """The same with when each was written, seconds since the epoch."""
        return {name: _written(info) for name, info in self._found(prefix).items()}

    def unfinished(self, prefix: str) -> dict[str, float]:
        """What a writer into a folder has not finished, or left when it was killed, and since when.

        It is no object yet: nothing else tells of it. A bucket shows nobody what is unfinished there.
        """
        if not self._in_folder:
            return {}
        found = self._found(prefix, unfinished=True)
        return {name: _written(info) for name, info in found.items()}

    def delete(self, name: str) -> None:
        """Delete an object, if it is there."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._path(name))
            if self._in_folder:
                self._remove_empty(name)

        self._tried("written", delete)

    def require_folder(self) -> None:
        """Refuse a folder that is not there.

        Where a mount is missing, a disk would fill up, and all that it holds would seem to be gone.
        """
        if self._in_folder and not Path(self._root).is_dir():
            raise RemoteError(f"{self.url}: is not there; mount it, or make the folder")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _found(self, prefix: str, *, unfinished: bool = False) -> dict[str, Mapping[str, Any]]:
        folder, start = self._path(prefix).rstrip("/"), len(self._path(""))

        def find() -> dict[str, Mapping[str, Any]]:
            if self._in_folder:
                found = self._files(folder, unfinished=unfinished)
            else:
                found = self._system.find(folder, detail=True)
            return {path[start:]: info for path, info in found.items()}

        return self._tried("read", find)

    def _files(self, folder: str, *, unfinished: bool) -> dict[str, Mapping[str, Any]]:
        """The files below a folder, in order.

        The driver takes one that cannot be listed for an empty one, and what is not listed is made
        anew, or deleted as if no manifest named it.
        """
        self.require_folder()
        found: dict[str, Mapping[str, Any]] = {}
        for place, _, names in os.walk(folder, onerror=_raise_unless_gone):
            for path in (os.path.join(place, name) for name in names):
                if (owner(Path(path)) is not None) == unfinished:
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        state = os.stat(path)
                        found[path] = {"size": state.st_size, "mtime": state.st_mtime}
        return dict(sorted(found.items()))

    @property
    def _system(self) -> Any:
        # A driver has threads, which a fork does not take along.
        if self.__dict__.get("_process") != os.getpid():
            self.__dict__.pop("_driver", None)
            self._process = os.getpid()
        return self._driver

    @cached_property
    def _driver(self) -> Any:
        import fsspec

        package, install = _DRIVERS.get(self._scheme, ("fsspec", ""))
        try:
            return fsspec.filesystem(
                self._scheme,
                skip_instance_cache=True,
                use_listings_cache=False,
                **_OPTIONS.get(self._scheme, {}),
            )
        except ImportError as error:
            raise RemoteError(f"{self.url}: needs {package}: {install}") from error

    def _tried(self, what: str, call: Callable[[], T]) -> T:
        for pause in (*_PAUSES_S, None):
            try:
                return call()
            except RemoteError:
                raise
            except Exception as error:  # drivers' errors have no common kind
                if pause is None or _is_final(error):
                    raise RemoteError(f"{self.url}: cannot be {what}: {_words(error)}") from error
                time.sleep(pause)
        raise AssertionError  # the last pause is None

    def _write_file(self, name: str, content: bytes) -> None:
        self.require_folder()
        write_bytes(Path(self._path(name)), content)

    def _copy(self, file: Path, name: str) -> None:
        self.require_folder()
        place = Path(self._path(name))
        place.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as source, open_atomic(place) as out:
            shutil.copyfileobj(source, out, 1 << 20)

    def _remove_empty(self, name: str) -> None:
        folder, root = Path(self._path(name)).parent, Path(self._root)
        # Those near the root are many writers'; one of them may be about to use it.
        while len(folder.relative_to(root).parts) > 2:
            try:
                folder.rmdir()
            except OSError:  # something else is in it
                return
            folder = folder.parent


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _written(info: Mapping[str, Any]) -> float:
    # Drivers call it differently, and give a date, its text, or seconds.
    names = ("LastModified", "mtime", "updated")
    found = next(info[name] for name in names if info.get(name) is not None)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    return found.timestamp() if isinstance(found, datetime) else float(found)


def _is_final(error: BaseException) -> bool:
    return (
        isinstance(error, _FINAL)
        or getattr(error, "errno", None) in _FINAL_NUMBERS
        or type(error).__name__ in _FINAL_NAMES
        or is_disk_full(error)
    )


def _words(error: BaseException) -> str:
    text = in_one_line(getattr(error, "strerror", None) or error)
    for name in _SECRET_VARIABLES:
        if value := os.environ.get(name):
            text = text.replace(value, HIDDEN)
    return scrubbed(text)
