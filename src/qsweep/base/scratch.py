"""Folders for what nobody needs afterwards, which say whose they are."""

import contextlib
import os
import tempfile

from qsweep.base.locks import try_lock

PREFIX = "qsweep-"


class ScratchFolder(tempfile.TemporaryDirectory):
    """A folder below the system's one for temporary files, removed at the end.

    A process that is killed leaves it there. Its name holds the process's number and it is locked
    as long as that lives, so that a later one can tell (:mod:`qsweep.base.cleanup`): a number alone
    means another process in another container.

    Args:
        dir: Where to make it instead, for what needs a short path.
    """

    def __init__(self, dir: str | None = None) -> None:
        super().__init__(prefix=f"{PREFIX}{os.getpid()}-", dir=dir)
        self._lock = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a file system without locks
            try_lock(self._lock)

    def cleanup(self) -> None:
        """Remove it; a second time does nothing."""
        super().cleanup()
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)
