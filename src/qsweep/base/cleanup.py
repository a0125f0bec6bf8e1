"""What killed processes left half-written: found, and removed where certainly nobody uses it.

Entries and conversions under way are protected by the lock that their maker holds; other temporary
files and scratch folders by a lock on themselves, and by the number of their process in their name.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from qsweep.base.errors import QsweepError
from qsweep.base.locks import FileLock, try_lock
from qsweep.base.scratch import PREFIX
from qsweep.base.store import Kind, Store, delete

_OWNED = re.compile(rf"\..+\.(\d+)\.tmp|{PREFIX}(\d+)-\w+")


def remove_abandoned(outputs: Path) -> list[Path]:
    """Remove what nobody will ever finish, below ``outputs`` and among temporary files.

    Returns what was removed. What cannot be removed stays, without a word.
    """
    removed = []
    for path, lock in _entries(Store.below(outputs)):
        # Without waiting: who holds it is at work on this very entry.
        with contextlib.suppress(QsweepError, OSError), lock:
            delete(path)
            removed.append(path)
    for path in _owned(outputs):
        with contextlib.suppress(OSError):
            if not is_in_use(path):
                delete(path)
                removed.append(path)
    return removed


def is_in_use(path: Path) -> bool:
    """Whether the process that a temporary file or folder is named after, or any other, holds it."""
    found = _OWNED.fullmatch(path.name)
    if found is None or _is_alive(int(found[1] or found[2]), path.lstat().st_mtime):
        return True
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def _entries(store: Store) -> Iterator[tuple[Path, FileLock]]:
    for kind in get_args(Kind):
        for path in sorted((store.root / kind).glob(".*.tmp")):
            yield path, store.lock(kind, path.name[1:].partition(".")[0], timeout_s=0)
    conversions = store.root / "artifacts" / ".conversions"
    for path in sorted(conversions.glob(".*.tmp")):
        key = path.name[1:].partition(".")[0]
        yield path, FileLock(conversions / f"{key}.lock", timeout_s=0)


def _owned(outputs: Path) -> Iterator[Path]:
    store = Store.below(outputs).root
    found = [*outputs.glob(".*.tmp"), *(outputs / "sweeps").rglob(".*.tmp")]
    for folder in ("hashes", "catalogues"):
        found += (store / folder).glob(".*.tmp")
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.getuid():
                found.append(path)
    yield from (path for path in found if _OWNED.fullmatch(path.name))


def _is_alive(pid: int, last_change: float) -> bool:
    import psutil

    try:
        # One that began afterwards has inherited the number, and nothing else.
        return psutil.Process(pid).create_time() <= last_change + 1
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
