"""Commands that a person is told to type; of a queue with a password the URL is left to them."""

import shlex
from pathlib import Path

from qsweep.base.secrets import hidden_value

QUEUE_VARIABLE = "QSWEEP_QUEUE"
"""Where a queue's URL is found that no option gives: a command line shows its password."""


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
