"""Command lines that start an interpreter cut off from the machine around it.

Either bubblewrap, or util-linux's ``unshare`` with a few mounts. Both give an own tree of processes
(killed as one), no network, a read-only system without home directories, and a scratch directory of
bounded size in memory. Started by root they run the program as a user that owns nothing, because
RLIMIT_NPROC does not bind root.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from qsweep.tasks.sandbox.inside import bootstrap

SCRATCH = "/tmp"  # noqa: S108 - inside the sandbox, where it is the program's own
# How many files that directory may hold: empty ones take memory, too.
SCRATCH_FILES = 4096
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": SCRATCH,
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@lru_cache(maxsize=1)
def _bootstrap() -> str:
    return bootstrap()


def interpreter() -> list[str]:
    """Python itself, isolated: no site packages, no user's settings."""
    # os.path.realpath: the program that a virtual environment's link leads to.
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    return [executable, "-I", "-S", "-B", "-c", _bootstrap()]


def bubblewrap(user: int | None, scratch_bytes: int) -> list[str] | None:
    """The command before the interpreter's, by bubblewrap; None where it is not installed.

    ``user``: run the program as this one; for root.
    """
    bwrap = shutil.which("bwrap")
    # Older versions know no bounded scratch directory.
    if bwrap is None or "--size" not in _help(bwrap):
        return None
    command = [
        *[bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"],
        *["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--clearenv"],
    ]
    if user is None:
        command += ["--unshare-user"]
    else:
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    for place, target in _visible():
        command += ["--symlink", target, place] if target else ["--ro-bind", place, place]
    command += ["--dev", "/dev", "--perms", "1777", "--size", str(scratch_bytes)]
    command += ["--tmpfs", SCRATCH, "--remount-ro", "/dev", "--remount-ro", "/"]
    for name, value in _ENVIRONMENT.items():
        command += ["--setenv", name, value]
    return [*command, "--", *_as_user(user)]


def unshare(user: int | None, scratch_bytes: int) -> list[str] | None:
    """The command before the interpreter's, by util-linux alone; None where it is not installed."""
    needed = ("unshare", "mount", "umount", "pivot_root", "setpriv", "sh", "env")
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    found = {name: shutil.which(name, path=path) for name in needed}
    if not all(found.values()):
        return None
    command = "setpriv --pdeathsig=KILL unshare --mount --pid --net --ipc --uts --fork".split()
    command += ["--kill-child=KILL"] + (["--user", "--map-root-user"] if user is None else [])
    script = "\n".join(_mounts(scratch_bytes))
    environment = [f"{name}={value}" for name, value in _ENVIRONMENT.items()]
    # setpriv ends unshare with qsweep, unshare ends the shell, and with the shell, the first process
    # of its tree, all others end; so they do with the program, which the shell waits for.
    last = ["env", "-i", *environment, *_as_user(user)]
    return [*command, "sh", "-euc", f'{script}\n"$@"', "sh", *last]


def _mounts(scratch_bytes: int) -> Iterator[str]:
    yield "mount --make-rprivate /"
    yield "root=/mnt"
    yield 'mount -t tmpfs -o size=1m,mode=755 tmpfs "$root"'
    for place, target in _visible():
        if target:
            yield f'ln -s "{target}" "$root{place}"'
        else:
            yield f'mkdir -p "$root{place}"; mount --rbind "{place}" "$root{place}"'
            for mount, flags in _mounts_at(place):
                yield f'mount -o remount,bind,ro,{flags} "$root"{shlex.quote(mount)}'
    yield 'mkdir -p "$root/dev" "$root/tmp" "$root/proc" "$root/old"'
    for device in _DEVICES:
        yield f': > "$root/dev/{device}"; mount --bind /dev/{device} "$root/dev/{device}"'
    options = f"size={scratch_bytes},nr_inodes={SCRATCH_FILES},mode=1777,nosuid,nodev"
    yield f'mount -t tmpfs -o {options} tmpfs "$root/tmp"'
    yield 'mount -o remount,bind,ro "$root"'
    # umount finds nothing without /proc, which the program need not see.
    yield 'mount -t proc proc "$root/proc"'
    yield 'cd "$root"; pivot_root . old; cd /; umount -l /old; umount -l /proc'


def _mounts_at(place: str) -> Iterator[tuple[str, str]]:
    """What is mounted at or below a folder, outermost first, and the flags that must stay.

    A bind mount brings along what is mounted below it; to be made read-only each wants a word of
    its own, which must repeat the flags that a user namespace may not take away.
    """
    yield place, "nosuid,nodev"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        mount = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), fields[4])
        if mount.startswith(f"{place}/"):
            kept = [flag for flag in ("noexec",) if flag in fields[5].split(",")]
            yield mount, ",".join(["nosuid", "nodev", *kept])


def _as_user(user: int | None) -> list[str]:
    # No capability survives either way: those of a user namespace are dropped here, those of root by
    # becoming somebody else.
    drop = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    if user is not None:
        drop = ["setpriv", "--no-new-privs", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    return drop if shutil.which("setpriv") else []


@lru_cache(maxsize=1)
def _visible() -> tuple[tuple[str, str | None], ...]:
    # What can be seen: the system's folders (links as links), and Python's own.
    found: list[tuple[str, str | None]] = []
    for place in _SYSTEM:
        path = Path(place)
        if path.is_symlink():
            found.append((place, os.readlink(path)))
        elif path.is_dir():
            found.append((place, None))
    prefix = os.path.realpath(sys.base_prefix)
    if not any(prefix == place or prefix.startswith(f"{place}/") for place in _SYSTEM):
        found.append((prefix, None))
    return tuple(found)


@lru_cache
def _help(program: str) -> str:
    try:
        return subprocess.run(  # noqa: S603
            [program, "--help"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except OSError:
        return ""
