"""Folders for what nobody needs afterwards, which say whose they are."""

import contextlib
import os
import tempfile
from typing import TYPE_CHECKING

from qsweep.base.disk import DiskFull, is_disk_full
from qsweep.base.locks import try_lock

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PREFIX = "qsweep-"
# What small tensors share, and where in it each may begin.
_BLOCK_BYTES, _ALIGNED = 64 << 20, 64


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


class OnDisk:
    """Copies of tensors on disk, as :func:`on_disk` makes them, small ones together in one file.

    Each file is a mapping, and a process may have 65,530 of them (``vm.max_map_count``): fewer than
    the parts of a mixture's experts.
    """

    def __init__(self) -> None:
        self._block: Tensor | None = None
        self._used = 0

    def keep(self, tensor: "Tensor") -> "Tensor":
        """A copy. Raises DiskFull."""
        import torch

        if tensor.nbytes * 8 > _BLOCK_BYTES:
            return on_disk(tensor)
        if self._block is None or self._used + tensor.nbytes > _BLOCK_BYTES:
            self._block, self._used = _in_file(_BLOCK_BYTES, torch.uint8), 0
        own = self._block[self._used : self._used + tensor.nbytes]
        self._used += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        return own.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def on_disk(tensor: "Tensor") -> "Tensor":
    """A copy of a tensor that lies in a file, of which memory holds what there is room for.

    The file lies in the system's folder for temporary ones. It has no name, so that nothing is left
    of it once the tensor is gone, however the process ends.

    Raises:
        DiskFull: There is no room on the disk.
    """
    return _in_file(tensor.numel(), tensor.dtype).view(tensor.shape).copy_(tensor)


def _in_file(count: int, dtype: "torch.dtype") -> "Tensor":
    """So many numbers in a file without a name. Raises DiskFull."""
    import torch

    try:
        # Taking room may take long, and who is killed at it leaves the file by the process's number.
        handle, name = tempfile.mkstemp(prefix=f"{PREFIX}{os.getpid()}-")
        try:
            # Room is taken now: who writes into a mapped file that has none is killed.
            os.posix_fallocate(handle, 0, max(count * dtype.itemsize, 1))
            return torch.from_file(name, shared=True, size=count, dtype=dtype)
        finally:
            os.close(handle)
            os.unlink(name)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"no space left on the disk of {tempfile.gettempdir()}, where hidden states and finished "
            "layers of a streamed model wait: free some, or have them elsewhere with TMPDIR=DIR"
        ) from error
