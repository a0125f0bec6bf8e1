"""Control groups that bound the memory of a program, whatever kind of memory it is.

What the kernel charges to no process (files in memory, pipes, inodes, shared pages that nobody maps
any more) it charges to a control group all the same. Groups can be made by root, and by users to
whom a subtree is delegated; version 2 and version 1 of the kernel's interface differ in names. See
the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

import atexit
import contextlib
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_PREFIX = "qsweep-sandbox-"
# Enters a group, then becomes the command. Its arguments: the group's folder, the command.
_ENTER = 'echo 0 > "$1/cgroup.procs" && shift && exec "$@"'
# A group can be removed once all of its processes are gone.
_REMOVE_WITHIN_S = 2.0
# Groups that could not be removed in time.
_not_removed_yet: set[Path] = set()


@dataclass(frozen=True)
class ControlGroup:
    """A control group with a bound on its memory."""

    folder: Path

    def command(self, command: list[str]) -> list[str]:
        """The command that runs another in this group."""
        return ["sh", "-c", _ENTER, "sh", str(self.folder), *command]

    def ran_out(self) -> bool:
        """Whether the kernel has killed one of its processes for want of memory."""
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError):
                lines = (self.folder / name).read_text(encoding="ascii").splitlines()
                counts = dict(line.split(maxsplit=1) for line in lines)
                return int(counts.get("oom_kill", 0)) > 0
        return False


@contextlib.contextmanager
def limited(memory: int) -> Iterator[ControlGroup | None]:
    """A new group that may hold ``memory`` bytes; None where none can be had."""
    parent = _parent()
    if parent is None:
        yield None
        return
    group = _make(parent, memory)
    try:
        yield group
    finally:
        _remove(group)


def available() -> bool:
    """Whether groups can be made here."""
    return _parent() is not None


@lru_cache(maxsize=1)
def _parent() -> Path | None:
    """The folder in which groups can be made, found by making one and running something in it."""
    if shutil.which("sh") is None:
        return None
    for place in _candidate_folders():
        _remove_stale(place)
        try:
            group = _make(place, 64 << 20)
        except OSError:
            continue
        try:
            command = group.command(["true"])
            ran = subprocess.run(command, capture_output=True, timeout=10, check=False)  # noqa: S603
            if ran.returncode == 0:
                return place
        except (OSError, subprocess.TimeoutExpired):
            continue
        finally:
            _remove(group)
    return None


def _candidate_folders() -> Iterator[Path]:
    """Folders that might do, nearest first: the process's own group and those around it."""
    with contextlib.suppress(OSError, ValueError):
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = [
            line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
        ]
        for line in own:
            _, controllers, path = line.split(":", 2)
            for _, mount, kind, options, *_ in mounts:
                v1 = kind == "cgroup" and "memory" in options.split(",")
                if (
                    v1
                    and "memory" in controllers.split(",")
                    or kind == "cgroup2"
                    and not controllers
                ):
                    folder = Path(mount, path.lstrip("/"))
                    yield from (p for p in (folder, *folder.parents) if p.is_relative_to(mount))


def _make(parent: Path, memory: int) -> ControlGroup:
    """Make a group. Raises OSError where that is not permitted, or memory is not controlled."""
    group = ControlGroup(parent / f"{_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:12]}")
    group.folder.mkdir()
    try:
        if (group.folder / "memory.max").exists():
            (group.folder / "memory.max").write_text(str(memory))
            _try_to_write(group.folder / "memory.swap.max", 0)
            _try_to_write(group.folder / "memory.oom.group", 1)
        else:
            (group.folder / "memory.limit_in_bytes").write_text(str(memory))
            _try_to_write(group.folder / "memory.memsw.limit_in_bytes", memory)
    except OSError:
        _remove(group)
        raise
    return group


def _try_to_write(file: Path, value: int) -> None:
    # Where the kernel counts no swap there is no such file.
    with contextlib.suppress(OSError):
        file.write_text(str(value))


def _remove(group: ControlGroup) -> None:
    deadline = time.monotonic() + _REMOVE_WITHIN_S
    for folder in list(_not_removed_yet):
        _try_to_remove(folder)
    while not _try_to_remove(group.folder):
        if time.monotonic() > deadline:
            # The kernel still takes apart what it held: with the next group, or at the end.
            _not_removed_yet.add(group.folder)
            return
        time.sleep(0.005)


def _try_to_remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    _not_removed_yet.discard(folder)
    return True


@atexit.register
def _remove_late() -> None:
    deadline = time.monotonic() + _REMOVE_WITHIN_S
    for folder in list(_not_removed_yet):
        while not _try_to_remove(folder) and time.monotonic() < deadline:
            time.sleep(0.005)


def _remove_stale(parent: Path) -> None:
    """Remove what processes that were killed have left, here and in the groups beside."""
    with contextlib.suppress(OSError):
        for folder in (*parent.glob(f"{_PREFIX}*"), *parent.parent.glob(f"*/{_PREFIX}*")):
            owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
            if owner.isdigit() and not Path("/proc", owner).exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()
