"""Files on disk: atomic writes, stamps that tell whether a file is still what was written."""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.base.locks import try_lock
from qsweep.base.owners import temporary


@dataclass(frozen=True)
class FileStamp:
    """What identifies one file: size in bytes, modification time in ns, SHA-256."""

    size: int
    mtime_ns: int
    sha256: str


class NotRegularFile(OSError):
    """A pipe, a socket, a device or a directory lies where a file is expected."""


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading in binary, provided that it is one.

    A pipe without a writer would block for ever, and a device never ends.

    Raises:
        NotRegularFile: ``path`` is something else than a regular file.
        OSError: it is missing, or may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotRegularFile(f"is {_kind_of_file(mode)}, not a regular file")
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file; see :func:`open_regular`."""
    with open_regular(path) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """What a regular file holds as JSON.

    Raises:
        OSError: it is missing, no regular file, or may not be read.
        ValueError: it holds no JSON, or such that nothing but a mistake can have written it.
    """
    try:
        return json.loads(read_regular(path).decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _kind_of_file(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a directory",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for matches, name in kinds.items() if matches(mode)), "something else")


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a regular file's bytes."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(path: Path) -> FileStamp:
    """The stamp of a file as it is now."""
    found = path.stat()
    return FileStamp(found.st_size, found.st_mtime_ns, sha256_of(path))


def state_of(folder: Path, names: Iterable[str]) -> tuple[tuple[str, int, int, int], ...]:
    """What changes when one of a folder's files does: for what need not be read twice."""
    found = []
    for name in names:
        with contextlib.suppress(OSError):
            stat_ = (folder / name).stat()
            found.append((name, stat_.st_size, stat_.st_mtime_ns, stat_.st_ctime_ns))
    return tuple(found)


def verify(path: Path, stamp: FileStamp, *, full: bool) -> None:
    """Compare a file with its stamp; its content is hashed if ``full`` or if its time stamp moved.

    Raises:
        ArtifactCorrupt: it is missing, or differs.
    """
    try:
        found = path.stat()
        if found.st_size != stamp.size:
            raise ArtifactCorrupt(f"{path}: {found.st_size} bytes instead of {stamp.size}")
        if (full or found.st_mtime_ns != stamp.mtime_ns) and sha256_of(path) != stamp.sha256:
            raise ArtifactCorrupt(f"{path}: its content is not what was written")
    except OSError as error:
        raise ArtifactCorrupt(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a name that no file can have
        raise ArtifactCorrupt(f"{path!r}: {error}") from error


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """A new file in binary, which is at ``path`` once all of it is on disk.

    It is a temporary sibling until then, locked as long as its writer lives, so that others can tell
    what was left behind (:mod:`qsweep.base.cleanup`); it is gone where the writing fails.

    Raises:
        OSError: names ``path``.
    """
    aside = temporary(path)
    try:
        with aside.open("wb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                try_lock(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
            aside.replace(path)
    except OSError as error:
        # Only opening says which file it was, and that is the temporary one.
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically (:func:`open_atomic`); its folder is made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a text atomically, in UTF-8.

    In a locale of ASCII, the other letters of a path come in as bytes; they go out as the same.
    """
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_json(path: Path, content: Any, *, in_order: bool = False) -> None:
    """Write JSON atomically: temporary sibling, fsync, rename.

    An empty directory in its place, such as a container's mount leaves, is removed.

    Args:
        path: The file.
        content: What is written, sorted by keys at every depth.
        in_order: Leave keys as they stand instead.
    """
    if path.is_dir():
        with contextlib.suppress(OSError):
            path.rmdir()
    text = json.dumps(content, indent=1, sort_keys=not in_order)
    write_bytes(path, f"{text}\n".encode())


def shown(path: Path) -> str:
    """A path for people: relative where it lies below the working directory."""
    try:
        relative = os.path.relpath(path)
    except OSError:  # the working directory is gone
        return str(path)
    return str(path) if relative.startswith("..") else relative


def sync_tree(path: Path) -> None:
    """Flush every file below a directory, and the directories, to disk."""
    for item in [path, *path.rglob("*")]:
        if item.is_symlink():
            continue
        descriptor = os.open(item, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
