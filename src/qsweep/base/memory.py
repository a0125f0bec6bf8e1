"""Memory: what this process held at its peak, on the GPU and on the host, and what is free."""

import contextlib
import resource
from pathlib import Path


def reset_peak_memory(device: str) -> None:
    """Start the GPU's high-water mark anew; the host's is per process and cannot be reset."""
    if device.startswith("cuda"):
        import torch

        # Unlike almost all of torch.cuda, resetting does not initialise CUDA by itself: it raises.
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> dict[str, float]:
    """``peak_memory_gb`` on the device that computes, ``peak_host_memory_gb`` on the host.

    On a CPU both are the process's peak resident set.
    """
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if not device.startswith("cuda"):
        return {"peak_memory_gb": host, "peak_host_memory_gb": host}
    import torch

    return {
        "peak_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9,
        "peak_host_memory_gb": host,
    }


def available_bytes() -> int:
    """Free memory of the host, within what a container may use of it."""
    import psutil

    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        # Files that were read and can be dropped at any time are counted as used.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(stat.get("inactive_file", 0)))
    return max(free, 0)
