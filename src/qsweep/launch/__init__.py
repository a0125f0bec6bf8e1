"""Runs jobs, wherever; knows nothing of quantization. What runs them is chosen by ``launch=``."""

from qsweep.launch.display import Display, open_display
from qsweep.launch.job import Event, Job, JobResult, slot_device
from qsweep.launch.protocol import Capacity, Launcher

__all__ = [
    "Capacity",
    "Display",
    "Event",
    "Job",
    "JobResult",
    "Launcher",
    "open_display",
    "slot_device",
]
