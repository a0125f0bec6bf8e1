"""What killed processes left half-written: found, and removed where certainly nobody uses it.

Of this host's processes, the number in a name tells whether one still lives, and a lock whether
another is at work on the same: on the entry's for entries and conversions, else on the file itself.
Of another host's, which may share the folder, only days of silence tell (:mod:`qsweep.base.owners`).
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

from qsweep.base.errors import QsweepError
from qsweep.base.locks import FileLock, try_lock
from qsweep.base.owners import host, is_alive, is_silent, last_change, owner
from qsweep.base.publish import delete
from qsweep.base.scratch import PREFIX
from qsweep.base.store import Kind, Store

# Names without a host are of folders that one host has for itself, and of earlier versions.
_OWNED = re.compile(rf"\..+\.(\d+)\.tmp|{PREFIX}(\d+)-\w+")


def remove_abandoned(outputs: Path) -> list[Path]:
    """Remove what nobody will ever finish, below ``outputs`` and among temporary files.

    Returns what was removed. What cannot be removed stays, without a word.
    """
    removed = []
    for path, lock in _entries(Store.below(outputs)):
        # Without waiting: who holds it is at work on this very entry.
        with contextlib.suppress(QsweepError, OSError), lock:
            if _is_abandoned(path, lock):
                delete(path)
                removed.append(path)
    return [*removed, *_remove_unused(_below(outputs)), *remove_scratch()]


def remove_scratch() -> list[Path]:
    """Remove what killed processes left among this machine's temporary files; what that was."""
    return _remove_unused(_scratch())


def _remove_unused(paths: Iterable[Path]) -> list[Path]:
    removed = []
    for path in paths:
        with contextlib.suppress(OSError):
            if (owner(path) or _OWNED.fullmatch(path.name)) and not is_in_use(path):
                delete(path)
                removed.append(path)
    return removed


def _is_abandoned(path: Path, lock: FileLock) -> bool:
    """Whether nobody makes this entry any more; ``lock`` is its lock, held where there are locks."""
    found = owner(path)
    if found is None:  # of a version that had nothing but the lock
        return lock.held or is_silent(path)
    _, place, pid = found
    if place == host():
        if is_alive(pid, last_change(path)):
            return False
        if lock.held:
            return True
    return is_silent(path)


def is_in_use(path: Path) -> bool:
    """Whether the process that a temporary file or folder is named after, or any other, holds it."""
    if (found := owner(path)) is not None:
        _, place, pid = found
        if place != host():
            return not is_silent(path)
    elif match := _OWNED.fullmatch(path.name):
        pid = int(match[1] or match[2])
    else:
        return True
    if is_alive(pid, path.lstat().st_mtime):
        return True
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def _entries(store: Store) -> Iterator[tuple[Path, FileLock]]:
    for kind in get_args(Kind):
        for path in sorted((store.root / kind).glob(".*.tmp")):
            yield path, store.lock(kind, _key(path), timeout_s=0)
    conversions = store.root / "artifacts" / ".conversions"
    for path in sorted(conversions.glob(".*.tmp")):
        lock = FileLock(conversions / f"{_key(path)}.lock", timeout_s=0, optional=True)
        yield path, lock


def _key(path: Path) -> str:
    return path.name[1:].partition(".")[0]


def _below(outputs: Path) -> list[Path]:
    store = Store.below(outputs).root
    found = [*outputs.glob(".*.tmp"), *(outputs / "sweeps").rglob(".*.tmp")]
    for folder in ("hashes", "catalogues"):
        found += (store / folder).glob(".*.tmp")
    return found


def _scratch() -> Iterator[Path]:
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.getuid():
                yield path
