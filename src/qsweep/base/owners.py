"""Names of temporary files and folders, which say who writes them, and what to make of such a name.

Where several hosts share a folder, the number of a process says nothing on another host, and not
every file system there has locks. So of another host's, only a long silence tells that nobody
writes it any more.
"""

import contextlib
import functools
import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

# So long nothing changes in what nobody writes: no step is silent for days.
SILENT_S = 7 * 24 * 3600
_NAME = re.compile(r"\.(?P<of>.+)\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")


def temporary(path: Path) -> Path:
    """A new name beside a path: ``.NAME.HOST.PID.RANDOM.tmp``."""
    return path.with_name(f".{path.name}.{host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def temporaries(path: Path) -> Iterator[Path]:
    """What lies beside a path under such names."""
    for found in path.parent.glob(f".{path.name}.*.tmp"):
        match = _NAME.fullmatch(found.name)
        if match is not None and match["of"] == path.name:
            yield found


@functools.cache
def host() -> str:
    """This host's name as part of a file's: short, without a dot, different for different ones."""
    name = socket.gethostname()
    word = re.sub(r"[^\w-]", "-", name, flags=re.ASCII)[:20]
    return word if word == name else f"{word}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def owner(path: Path) -> tuple[str, str, int] | None:
    """What a temporary is of, its host, and its process; None for another kind of name."""
    found = _NAME.fullmatch(path.name)
    return None if found is None else (found["of"], found["host"], int(found["pid"]))


def is_silent(path: Path) -> bool:
    """Whether nothing in a file or folder has changed for days."""
    return time.time() - last_change(path) > SILENT_S


def is_dead(path: Path) -> bool:
    """Whether a temporary's process was one of this host, and is gone."""
    found = owner(path)
    return found is not None and found[1] == host() and not is_alive(found[2], last_change(path))


def last_change(path: Path) -> float:
    """When anything in a file or folder changed last, seconds since the epoch; 0 if it is gone."""
    times, found_in = [0.0], [path]
    if not path.is_symlink():
        # Unlike a glob, a walk does not mind that folders go while it looks.
        for folder, folders, files in os.walk(path):
            found_in += [Path(folder, name) for name in (*folders, *files)]
    for one in found_in:
        with contextlib.suppress(OSError):  # its maker may be at work
            found = one.lstat()
            times.append(max(found.st_mtime, found.st_ctime))
    return max(times)


def is_alive(pid: int, since: float) -> bool:
    """Whether the process of this host that had a number at some time, in seconds, still runs."""
    import psutil

    try:
        # One that began afterwards has inherited the number, and nothing else.
        return psutil.Process(pid).create_time() <= since + 1
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
