"""How much memory something takes at most: resident, from torch's allocator, or of a GPU."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path
from typing import Protocol

_STATUS = Path("/proc/self/status")


class MemoryMeter(Protocol):
    """Something that was told when to begin watching."""

    def peak_bytes(self) -> int:
        """The most that was taken since, beyond what was taken then."""


class ResidentMemory:
    """The high-water mark of resident memory from now on, beyond what is resident now.

    On Linux the mark is reset; elsewhere it counts only if it rises above all the process ever had.
    """

    def __init__(self) -> None:
        gc.collect()
        if sys.platform == "linux":
            # What the allocator has kept of freed memory would otherwise be used again unseen.
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
            with contextlib.suppress(OSError):
                # 5: reset the peak; see proc_pid_clear_refs(5).
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.before = _status("VmRSS") or _peak()

    def peak_bytes(self) -> int:
        """Bytes at the highest point since, beyond what there was."""
        return max(0, (_status("VmHWM") or _peak()) - self.before)


class TorchMemory:
    """What torch's allocator gave out."""

    def __init__(self, device: str):
        import torch

        torch.cuda.init()  # which resetting leaves to others, and then raises
        torch.cuda.reset_peak_memory_stats(device)
        self.device, self.before = device, torch.cuda.memory_allocated(device)

    def peak_bytes(self) -> int:
        """The most at any time since, beyond what was given out then."""
        import torch

        return torch.cuda.max_memory_allocated(self.device) - self.before


class GPUMemory:
    """What the GPU has less than before; llama.cpp takes all it needs before it runs."""

    def __init__(self, device: str):
        import torch

        self.device = device
        self.free = torch.cuda.mem_get_info(device)[0]

    def peak_bytes(self) -> int:
        """What is taken now."""
        import torch

        return max(0, self.free - torch.cuda.mem_get_info(self.device)[0])


def _status(field: str) -> int | None:
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
