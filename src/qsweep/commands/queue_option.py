"""What names a sweep's jobs on a command line: its own name, and ``--queue``, their database."""

import argparse

from qsweep.base.names import folder_name
from qsweep.launch.queue.hints import QUEUE_VARIABLE


def add_sweep_and_queue(parser: argparse.ArgumentParser) -> None:
    """Give a command both."""
    parser.add_argument(
        "sweep",
        metavar="SWEEP",
        type=lambda name: folder_name(name, "SWEEP"),
        help="the sweep's name",
    )
    parser.add_argument(
        "--queue",
        metavar="URL",
        help=f"the queue's database; default: what {QUEUE_VARIABLE} says, else queue.db in --outputs",
    )
