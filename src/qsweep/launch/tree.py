"""Process trees on Linux: dying with the parent, adopting orphans, killing what a job started.

Nothing but the standard library: the fork server imports it before anything else. On other systems
the kernel's part is missing and only process groups are killed.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

# Set in the environment of each job to a mark of its own, so that programs which left the job's
# process group can still be recognised as its. What was only forked has no environment of its own,
# but inherits the process's name, which ends in the mark's last digits.
MARK = "QSWEEP_JOB"

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(on: bool = True) -> None:
    """Have the kernel kill this process when the thread that started it ends, or no longer."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if on else 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_process_name(mark: str) -> None:
    """Name this process after its mark, for what it forks to inherit."""
    _prctl(_PR_SET_NAME, _name_of(mark).encode())


def kill_group(pid: int) -> None:
    """Kill a process and the process group that it leads."""
    # Both: a process that was forked a moment ago does not lead a group yet.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def kill_marked(marks: set[str]) -> None:
    """Kill every process on this host that carries one of ``marks``."""
    for pid in _numbers(Path("/proc")):
        if pid != os.getpid() and is_marked(pid, marks):
            kill_group(pid)


def kill_descendants() -> None:
    """Kill every process that descends from this one, stopped ones too."""
    adopt_orphans()  # or what is started between a look and its parent's death would get away
    for _ in range(10):
        found = descendants()
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def descendants(root: int | None = None) -> list[int]:
    """Process ids of the living processes that descend from one (this), parents before children."""
    parents = {pid: _parent_of(pid) for pid in _numbers(Path("/proc"))}
    found = [os.getpid() if root is None else root]
    for pid in found:  # grows as it goes
        found += [child for child, parent in parents.items() if parent == pid]
    return [pid for pid in found[1:] if state_of(pid) not in ("Z", "X", None)]


def state_of(pid: int) -> str | None:
    """A process's state in one letter, as ps has it (T: stopped, Z: dead); None if it is gone."""
    fields = stat_fields(pid)
    return fields[0] if fields else None


def kill_orphans(jobs: dict[int, str]) -> int:
    """Kill this process's children that are neither a job nor belong to a living one.

    ``jobs`` are the living jobs' pids and marks. Returns how many were killed. Their own children
    become this process's in turn (see :func:`adopt_orphans`), so call again when they are reaped.
    """
    killed = 0
    for pid in set(children()) - set(jobs):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) in jobs or is_marked(pid, set(jobs.values())):
                continue
            kill_group(pid)
            killed += 1
    return killed


def children() -> list[int]:
    """Process ids of this process's living children (of its main thread), zombies included."""
    try:
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        return [int(pid) for pid in listed.split()]
    except OSError:  # a kernel without this list
        return [pid for pid in _numbers(Path("/proc")) if _parent_of(pid) == os.getpid()]


def is_marked(pid: int, marks: set[str]) -> bool:
    """Whether a process descends from a job with one of ``marks``."""
    try:
        name = Path(f"/proc/{pid}/comm").read_bytes().strip()
        if name in {_name_of(mark).encode() for mark in marks}:
            return True
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, a zombie, or another user's
        return False
    return not {f"{MARK}={mark}".encode() for mark in marks}.isdisjoint(environment)


def _name_of(mark: str) -> str:
    return f"qsweep-{mark[-8:]}"  # the kernel keeps 15 bytes


def _prctl(option: int, value: int | bytes) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _numbers(directory: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(directory) if name.isdigit()]
    except OSError:
        return []


def _parent_of(pid: int) -> int | None:
    fields = stat_fields(pid)
    return int(fields[1]) if fields else None


def stat_fields(pid: int) -> list[str]:
    """What the kernel says of a process after its name: state, parent, …; nothing if it is gone."""
    try:
        # The name in brackets may itself hold spaces and brackets.
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2]
    except OSError:
        return []
    return stat.decode().split()
