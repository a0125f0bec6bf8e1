"""A queue of jobs in a database, and workers anywhere: ``launch=workers``."""

from qsweep.launch.queue.hints import QUEUE_VARIABLE
from qsweep.launch.queue.launcher import QueueLauncher

__all__ = ["QUEUE_VARIABLE", "QueueLauncher"]
