"""Folders for what nobody needs afterwards, which say whose they are."""

import contextlib
import os
import tempfile
from typing import TYPE_CHECKING

from qsweep.base.disk import DiskFull, is_disk_full
from qsweep.base.locks import try_lock

if TYPE_CHECKING:
    from torch import Tensor

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


def on_disk(tensor: "Tensor") -> "Tensor":
    """A copy of a tensor that lies in a file, of which memory holds what there is room for.

    The file lies in the system's folder for temporary ones. It has no name, so that nothing is left
    of it once the tensor is gone, however the process ends.

    Raises:
        DiskFull: There is no room on the disk.
    """
    try:
        return _on_disk(tensor)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"no space left on the disk of {tempfile.gettempdir()}, where hidden states and finished "
            "layers of a streamed model wait: free some, or have them elsewhere with TMPDIR=DIR"
        ) from error


def _on_disk(tensor: "Tensor") -> "Tensor":
    import torch

    handle, name = tempfile.mkstemp(prefix=PREFIX)
    try:
        # Room is taken now: who writes into a mapped file that has none is killed.
        os.posix_fallocate(handle, 0, max(tensor.nbytes, 1))
        mapped = torch.from_file(name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    finally:
        os.close(handle)
        os.unlink(name)
    return mapped.view(tensor.shape).copy_(tensor)
