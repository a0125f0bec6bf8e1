"""Memory: what this process held at its peak, on the GPU and on the host, and what is free."""

import contextlib
import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


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


def available_bytes(root: Path = Path("/")) -> int:
    """Free memory of the host, within what control groups leave of it (versions 1 and 2).

    Args:
        root: Where ``proc`` and ``sys`` lie.
    """
    import psutil

    left = [_left_in(group) for group in _groups(root)]
    free: int = psutil.virtual_memory().available
    return max(min([free, *(bytes_ for bytes_ in left if bytes_ is not None)]), 0)


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's memory group and of those that it lies in.

    Inside a container the path that the kernel tells may be the host's: what of it is not there is
    left out, and the mounted folder itself is the container's group.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    mounted = root / "sys/fs/cgroup"
    told = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    for _, controllers, path in [*told, ("", "", "/")]:
        if controllers and "memory" not in controllers.split(","):
            continue
        top = mounted / "memory" if controllers else mounted
        inner = PurePosixPath(path.lstrip("/"))
        yield from (top / part for part in (inner, *inner.parents))


def _left_in(group: Path) -> int | None:
    """What a group's processes may still take, in bytes; None where it has no limit."""
    for limit_file, used_file, inactive in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            limit = int((group / limit_file).read_text(encoding="ascii"))
            used = int((group / used_file).read_text(encoding="ascii"))
            lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
            # Files that were read and can be dropped at any time are counted as used.
            stat = dict(line.split() for line in lines)
            return limit - used + int(stat.get(inactive, 0))
    return None


def set_malloc(*, mapped_from: int, kept: int) -> bool:
    """Tell glibc what becomes of freed memory; False where there is another C library.

    Args:
        mapped_from: Blocks of so many bytes are mapped by themselves, and go back once they are free.
        kept: So many free bytes are kept of smaller ones.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - its absence tells another C library
        # malloc.h: M_TRIM_THRESHOLD -1, M_MMAP_THRESHOLD -3.
        return bool(library.mallopt(-3, mapped_from) and library.mallopt(-1, kept))
    except (OSError, AttributeError, TypeError):
        return False


def trim_malloc() -> None:
    """Give back to the system what the C library has kept of freed memory, where that is glibc."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
