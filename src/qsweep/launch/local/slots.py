"""What may run at once, and on which device: one job per visible GPU, or the CPU's cores divided.

Nothing here imports torch: asking it for the GPUs would initialise CUDA in the wrong process.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qsweep.base.errors import ConfigError
from qsweep.launch.gpus import (
    visible_gpus,
)
from qsweep.launch.job import DEVICE_VARIABLE


@dataclass(frozen=True)
class Slots:
    """How many jobs run at once and what they share.

    ``gpus`` are the visible GPUs as ``CUDA_VISIBLE_DEVICES`` spells them, in CUDA's order.
    ``per_gpu`` jobs may share one of them. ``threads`` is each job's share of the CPU's cores,
    None for all of them.
    """

    count: int
    gpus: tuple[str, ...] = ()
    per_gpu: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class Placement:
    """Where a job runs: the GPUs it sees (none: the CPU) and what the device is called there."""

    gpus: tuple[str, ...]
    device: str

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make it so in the job's process."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus), DEVICE_VARIABLE: self.device}


def make_slots(
    n_jobs: int | Literal["auto"] = "auto",
    devices: Sequence[str] = ("auto",),
    gpus: Sequence[str] | None = None,
) -> Slots:
    """Decide what may run at once.

    Args:
        n_jobs: how many jobs; ``auto`` means one per GPU that the jobs may use, one on the CPU.
        devices: the devices that the jobs ask for (see :class:`~qsweep.launch.job.Job`).
        gpus: the GPUs to use, by default those that are visible. They are looked for only where a
            job may use one.

    Raises:
        ConfigError: ``n_jobs`` is not a positive number, or a device has no known name.
    """
    if n_jobs != "auto" and (isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or n_jobs < 1):
        raise ConfigError(f"n_jobs={n_jobs}: must be 'auto' or a whole number from 1")
    for device in devices:
        if not re.fullmatch(r"auto|cpu|all|cuda(:\d+)?", device):
            raise ConfigError(f"device={device}: must be auto, cpu, cuda, cuda:N or all")
    if all(device == "cpu" for device in devices):
        gpus = ()
    found = tuple(visible_gpus() if gpus is None else gpus)
    pinned = {_number(device) for device in devices if ":" in device}
    any_gpu = any(device in ("auto", "cuda") for device in devices)
    usable = len(found) if any_gpu else len([n for n in pinned if n < len(found)])
    count = max(usable, 1) if n_jobs == "auto" else n_jobs
    return Slots(
        count=count,
        gpus=found,
        per_gpu=-(-count // usable) if usable else 1,
        threads=max(cores() // count, 1) if count > 1 else None,
    )


def why_unplaceable(slots: Slots, device: str) -> str | None:
    """Why a job with this device can never run here, None if it can."""
    if device in ("auto", "cpu"):
        return None
    if not slots.gpus:
        return f"device={device}: no CUDA GPU is visible"
    if ":" in device and _number(device) >= len(slots.gpus):
        return f"device={device}: only {len(slots.gpus)} GPU(s) are visible, counted from 0"
    return None


def place_job(slots: Slots, device: str, taken: Sequence[Placement]) -> Placement | None:
    """Where a job may run now, given where others do; None if it has to wait.

    A job sees its GPU alone, hence as ``cuda:0``, whatever its number is outside.
    """
    if len(taken) >= slots.count:
        return None
    if device == "cpu" or (device == "auto" and not slots.gpus):
        return Placement((), "cpu")
    load = dict.fromkeys(slots.gpus, 0)
    for placement in taken:
        for gpu in placement.gpus:
            load[gpu] += slots.per_gpu if len(placement.gpus) > 1 else 1
    if device == "all":
        return None if any(load.values()) else Placement(slots.gpus, "cuda")
    wanted = slots.gpus if ":" not in device else slots.gpus[_number(device) :][:1]
    best = min(wanted, key=lambda gpu: load[gpu])
    return Placement((best,), "cuda:0") if load[best] < slots.per_gpu else None


def _number(device: str) -> int:
    return int(device.partition(":")[2])


def cores() -> int:
    """The CPU's cores that this process may use: the system's limit, or ``OMP_NUM_THREADS``."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    available = len(os.sched_getaffinity(0))
    return min(int(limit), available) if limit.isdigit() and int(limit) else available
