"""Peak memory of this process: what the GPU's allocator held, and what the host gave."""

import resource


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
