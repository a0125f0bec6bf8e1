"""Files on disk: atomic writes, stamps that tell whether a file is still what was written."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsweep.errors import ArtifactCorrupt


@dataclass(frozen=True)
class FileStamp:
    """What identifies one file: size in bytes, modification time in ns, SHA-256."""

    size: int
    mtime_ns: int
    sha256: str


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(path: Path) -> FileStamp:
    """The stamp of a file as it is now."""
    stat = path.stat()
    return FileStamp(stat.st_size, stat.st_mtime_ns, sha256_of(path))


def verify(path: Path, stamp: FileStamp, *, full: bool) -> None:
    """Compare a file with its stamp; its content is hashed if ``full`` or if its time stamp moved.

    Raises:
        ArtifactCorrupt: it is missing, or differs.
    """
    try:
        stat = path.stat()
        if stat.st_size != stamp.size:
            raise ArtifactCorrupt(f"{path}: {stat.st_size} bytes instead of {stamp.size}")
        if (full or stat.st_mtime_ns != stamp.mtime_ns) and sha256_of(path) != stamp.sha256:
            raise ArtifactCorrupt(f"{path}: its content is not what was written")
    except OSError as error:
        raise ArtifactCorrupt(f"{path}: {error.strerror or error}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: temporary sibling, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: temporary sibling, fsync, rename."""
    write_bytes(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


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
