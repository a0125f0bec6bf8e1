"""What the tests of isolation have it run on a GPU. Imported by name in the jobs' processes."""

import os
import signal
import time
from pathlib import Path


def free_memory(payload, progress):
    """How much is free, that CUDA was not touched before, and that a product comes out right."""
    import torch

    touched = torch.cuda.is_initialized()
    ones = torch.ones(256, 256, device="cuda:0")
    total = float((ones @ ones).sum())
    return {"free": torch.cuda.mem_get_info()[0], "touched": touched, "total": total}


def take_all(payload, progress):
    import torch

    hoard = []
    while True:
        hoard.append(torch.ones(1 << 28, device="cuda:0"))


def read_what_is_not_there(payload, progress):
    """An illegal access: memory that was given back to the driver, seen through its old address."""
    import torch

    block = torch.zeros(1 << 26, device="cuda:0")

    class Address:
        __cuda_array_interface__ = {
            "shape": (1 << 26,),
            "typestr": "<f4",
            "data": (block.data_ptr(), False),
            "version": 3,
        }

    alias = torch.as_tensor(Address(), device="cuda:0")
    del block
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return {"sum": float(alias.sum())}


def index_out_of_range(payload, progress):
    """A kernel's own assertion, which takes the context down as well."""
    import torch

    table = torch.zeros(16, 4, device="cuda:0")
    return {"sum": float(table[torch.tensor([1 << 20], device="cuda:0")].sum())}


def die_in_a_kernel(payload, progress):
    import torch

    hold = torch.ones(1 << 28, device="cuda:0")
    torch.cuda.synchronize()
    torch.cuda._sleep(1 << 40)  # cycles: minutes
    os.kill(os.getpid(), signal.SIGKILL)
    return {"sum": float(hold.sum())}


def hang_in_a_kernel(payload, progress):
    import torch

    torch.cuda._sleep(1 << 40)
    torch.cuda.synchronize()
    return {}


def meet(payload, progress):
    """Hold memory until another job on the same GPU does, too."""
    import torch

    held = torch.full((1 << 26,), 2.0, device="cuda:0")
    folder = Path(payload["folder"])
    (folder / payload["name"]).touch()
    give_up = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2:
        if time.monotonic() > give_up:
            raise TimeoutError("alone on the GPU")
        time.sleep(0.01)
    return {"sum": float(held.sum()), "visible": os.environ["CUDA_VISIBLE_DEVICES"]}


def peaks(payload, progress):
    """What memory.py says of allocations whose sizes are known, in a process new to CUDA."""
    from qsweep.base.memory import peak_memory, reset_peak_memory

    reset_peak_memory("cuda:0")
    import torch

    before = torch.cuda.memory_allocated("cuda:0")
    block = torch.ones(payload["bytes"], dtype=torch.uint8, device="cuda:0")
    del block
    small = torch.ones(1 << 20, dtype=torch.uint8, device="cuda:0")
    found = peak_memory("cuda:0")["peak_memory_gb"]
    reset_peak_memory("cuda:0")
    again = peak_memory("cuda:0")["peak_memory_gb"]
    allocator = torch.cuda.memory_stats("cuda:0")["allocated_bytes.all.peak"]
    return {
        "peak": found - before / 1e9,
        "again": again - before / 1e9,
        "allocator": allocator / 1e9 - before / 1e9,
        "small": small.numel() / 1e9,
    }
