"""Where a sweep's queue is, and the commands that a person is told to type to get at it."""

import os
import shlex
from pathlib import Path

from qsweep.base.databases import sqlite_url
from qsweep.base.secrets import hidden_value

QUEUE_VARIABLE = "QSWEEP_QUEUE"
"""Where a queue's URL is found that no option gives: a command line shows its password."""


def given_queue(option: str | None) -> str | None:
    """The URL that an option, or else the environment, gives; None where neither does."""
    return option or os.environ.get(QUEUE_VARIABLE) or None


def queue_file(outputs: Path) -> Path:
    """The queue that is meant where no URL is given."""
    return outputs / "queue.db"


def queue_url(option: str | None, outputs: Path) -> str:
    """The URL of a sweep's queue."""
    return given_queue(option) or sqlite_url(queue_file(outputs))


def command(verb: str, sweep: str, queue: str | None, outputs: Path) -> str:
    """``qsweep worker SWEEP`` or ``qsweep status SWEEP``, with what finds the sweep's queue.

    Args:
        verb: The command.
        sweep: The sweep's name.
        queue: The URL of its queue; None where that is the file in the outputs' folder.
        outputs: The outputs' folder, which ``status`` reads records in, too.
    """
    words = ["qsweep", verb, sweep]
    if queue is None or (verb == "status" and outputs.absolute() != Path("outputs").absolute()):
        words.append(f"--outputs={outputs}")
    if queue is None:
        return shlex.join(words)
    if hidden_value(queue) != queue:
        return f"{QUEUE_VARIABLE}=URL {shlex.join(words)}"
    return shlex.join([*words, f"--queue={queue}"])
