"""A queue of jobs in a database, and workers anywhere: ``launch=workers``."""

from qsweep.launch.queue.launcher import QUEUE_VARIABLE, QueueLauncher

__all__ = ["QUEUE_VARIABLE", "QueueLauncher"]
