"""A finished folder put into its place, by one rename, whoever else does the same at that moment."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

from qsweep.base.owners import temporary

# What a rename says where something is in the place already.
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def publish(made: Path, place: Path, is_good: Callable[[], bool]) -> bool:
    """Rename a finished folder to its place, unless a good one is there.

    No lock is needed. A folder never replaces another that is not empty, so of several makers one
    wins, and the others find what it made. What is damaged is moved aside before it is deleted; what
    was moved is deleted only if it is still what was looked at, and goes back otherwise.

    Args:
        made: The finished folder, on the same file system; it stays where another is good.
        place: Where it belongs.
        is_good: Looks at what is in the place.

    Returns:
        Whether it is there now, and not another's.

    Raises:
        OSError: It cannot be renamed.
    """
    while True:
        try:
            made.rename(place)
            return True
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        seen = _mark(place)
        if is_good():
            return False
        if seen is not None and seen == _mark(place):
            _remove_seen(place, seen)


def delete(path: Path) -> None:
    """Remove a file, a link or a directory, if it is there; what a link points to stays."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.exists():
        shutil.rmtree(path)


def withdraw(place: Path) -> None:
    """Delete a folder that others may look at: it is gone at once, by a rename, or stays whole.

    Raises:
        FileNotFoundError: It is not there.
    """
    aside = temporary(place)
    place.rename(aside)
    delete(aside)


def _remove_seen(place: Path, seen: tuple[int, int]) -> None:
    aside = temporary(place)
    try:
        place.rename(aside)
    except FileNotFoundError:
        return  # another maker was faster
    if _mark(aside) != seen:
        # Between the look and the rename somebody put a good one there.
        try:
            aside.rename(place)
            return
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
    delete(aside)


def _mark(path: Path) -> tuple[int, int] | None:
    """What tells one folder from another that has its name; a rename does not change it."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
