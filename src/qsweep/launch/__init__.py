"""Runs jobs, each in a process of its own; knows nothing of quantization."""

from qsweep.launch.display import Display, open_display
from qsweep.launch.job import Event, Job, JobResult
from qsweep.launch.local.client import PRELOAD, ForkServer
from qsweep.launch.local.schedule import run_jobs
from qsweep.launch.local.slots import Slots, make_slots, slot_device

__all__ = [
    "PRELOAD",
    "Display",
    "Event",
    "ForkServer",
    "Job",
    "JobResult",
    "Slots",
    "make_slots",
    "open_display",
    "run_jobs",
    "slot_device",
]
