"""How much memory a program's processes hold together.

RLIMIT_AS binds each process by itself: eight of them could hold eight times the limit. A control
group binds them all, but not every machine lets a user make one; what the kernel counts of each
process can be read on all.
"""

import contextlib
import os
from collections.abc import Iterator
from glob import glob
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def exceeds_memory(pid: int, limit: int) -> bool:
    """Whether a process and all that descend from it hold more than ``limit`` bytes of memory.

    Resident pages are counted in microseconds, but those that forks share once for each of them:
    where they add up to more than the limit, proportional shares decide.
    """
    family = list(_family(pid))
    return sum(map(_resident, family)) > limit and sum(map(_share, family)) > limit


def exceeds_file_count(pid: int, folder: str, limit: int) -> bool:
    """Whether more than ``limit`` files lie in the file system of ``folder``, as a process sees it.

    Empty ones take memory that no process is charged with. ``pid`` is the first process of the
    sandbox; those that see this machine's own folder, as until it is cut off, do not count.
    """
    for member in _family(pid):
        seen = f"/proc/{member}/root{folder}"
        with contextlib.suppress(OSError):
            if os.stat(seen).st_dev != os.stat(folder).st_dev:
                found = os.statvfs(seen)
                if found.f_files - found.f_ffree > limit:
                    return True
    return False


def _family(pid: int) -> Iterator[int]:
    yield pid
    # A child is listed with the thread that forked it. Orphans go to the first process of the
    # sandbox's own tree, which descends from ``pid``.
    for thread in glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            for child in Path(thread).read_text(encoding="ascii").split():
                yield from _family(int(child))


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    except OSError:
        return 0


def _share(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not ours to read, or over
        return _resident(pid)
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
