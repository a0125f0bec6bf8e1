"""The option ``--queue``, which names the database that a sweep's jobs wait in."""

import argparse

from qsweep.launch.queue.hints import QUEUE_VARIABLE


def add_queue_option(parser: argparse.ArgumentParser) -> None:
    """Give a command the option."""
    parser.add_argument(
        "--queue",
        metavar="URL",
        help=f"the queue's database; default: what {QUEUE_VARIABLE} says, else queue.db in --outputs",
    )
