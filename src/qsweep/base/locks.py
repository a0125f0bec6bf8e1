"""Advisory file locks that name their owner.

``flock`` on an open file: the kernel releases it when its owner dies, so a dead owner's lock is
free at once and the text inside is only there to tell who is waited for. The file itself stays:
removing it would let two owners hold locks on two files of the same name.
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Self

from qsweep.base.errors import QsweepError

_POLL_S = 0.05
_POLL_SLOWEST_S = 0.5
# What a file system without locks answers.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class LockTimeout(QsweepError):
    """A lock was not free in time; the text names who holds it."""


class FileLock:
    """An exclusive lock between processes, on this host and on others that share the file system.

    Not re-entrant: a second lock on the same path waits, in the same process too.

    Example:
        >>> import tempfile
        >>> with FileLock(Path(tempfile.mkdtemp()) / "model.lock") as lock:
        ...     lock.held
        True

    Args:
        path: the lock's file; made if missing, with its folder.
        timeout_s: how long to wait for another owner, None for ever, 0 not at all.
        notice: called with one line, ``waiting for PID on HOST``, when the wait begins and whenever
            the owner changes.
        optional: whether to go on without, where the file system has no locks: for a lock that only
            saves work. ``held`` then stays false.
        moved_by: what moves the file elsewhere, for the message where the file system has no locks.
    """

    def __init__(
        self,
        path: Path,
        *,
        timeout_s: float | None = None,
        notice: Callable[[str], None] | None = None,
        optional: bool = False,
        moved_by: str = "outputs_dir",
    ) -> None:
        self.path = Path(path)
        self.timeout_s = timeout_s
        self.notice = notice
        self.optional = optional
        self.moved_by = moved_by
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, waiting for its owner.

        Raises:
            LockTimeout: it was not free in time.
            QsweepError: the file cannot be made, or the file system has no locks and the lock is not
                optional.
        """
        if self.held:
            raise RuntimeError(f"{self.path}: already held by this object")
        descriptor = self._open()
        try:
            self._wait(descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        except OSError as error:
            os.close(descriptor)
            if self.optional and error.errno in _NO_LOCKS:
                return
            raise QsweepError(self._refusal(error)) from error
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(self)

    def release(self) -> None:
        """Give the lock up, if it is held."""
        descriptor, self._descriptor = self._descriptor, None
        _held.discard(self)
        if descriptor is not None:
            with contextlib.suppress(OSError):  # a full disk must not keep a lock
                os.ftruncate(descriptor, 0)
            # Not by closing alone: a forked process may hold a copy of the descriptor.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_dir():
                # An empty one is what a container's mount leaves; another is refused below.
                with contextlib.suppress(OSError):
                    self.path.rmdir()
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe's end is no lock
            return os.open(self.path, flags, 0o666)
        except OSError as error:
            raise QsweepError(self._refusal(error)) from error

    def _wait(self, descriptor: int) -> None:
        give_up = None if self.timeout_s is None else time.monotonic() + self.timeout_s
        noticed, pause = "", _POLL_S
        while not try_lock(descriptor):
            owner = owner_of(self.path) or "an unknown process"
            if owner != noticed and self.notice is not None:
                self.notice(f"waiting for {owner}")
                noticed = owner
            left = pause if give_up is None else give_up - time.monotonic()
            if left <= 0:
                waited = f"{self.timeout_s:g} s"
                raise LockTimeout(f"{self.path}: still locked by {owner} after {waited}")
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _POLL_SLOWEST_S)

    def _refusal(self, error: OSError) -> str:
        if error.errno in _NO_LOCKS:
            return f"{self.path}: its file system has no locks; set {self.moved_by} to another one"
        return f"{self.path}: cannot be locked: {error.strerror or error}"


def device_lock(
    name: str,
    *,
    timeout_s: float | None = None,
    notice: Callable[[str], None] | None = None,
) -> FileLock:
    """The lock to hold while timing something alone on a device, such as ``cuda:0`` or ``cpu``.

    It keeps apart all of a user's processes on this host, whatever store they work for, and lies in
    the temporary folder: a store may be on a file system without locks. The host's name is part of
    the file's, since another machine's ``cuda:0`` is another device, should they share that folder.

    Args:
        name: The device, and whatever else is to be had alone.
        timeout_s: How long to wait for another owner, None for ever.
        notice: Called with a line when a wait begins; see :class:`FileLock`.
    """
    safe = re.sub(r"[^\w.-]+", "-", f"{socket.gethostname()}-{name}")
    path = Path(tempfile.gettempdir()) / f"qsweep-device-{os.getuid()}-{safe}.lock"
    return FileLock(path, timeout_s=timeout_s, notice=notice, moved_by="TMPDIR")


def owner_of(path: Path) -> str | None:
    """``PID on HOST`` as the last owner wrote it, None if there is nothing to read."""
    try:
        pid, host = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return f"{pid} on {host}"


def try_lock(descriptor: int) -> bool:
    """Lock an open file, if nobody else does; raises OSError where its file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_held: "weakref.WeakSet[FileLock]" = weakref.WeakSet()


def _drop_in_fork() -> None:
    # A lock lives as long as any copy of its descriptor: a forked child that outlived its parent
    # would keep a dead owner's lock.
    for lock in list(_held):
        descriptor, lock._descriptor = lock._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_drop_in_fork)
