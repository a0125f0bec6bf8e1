"""``qsweep``: finds the command that the first word names; whatever else is typed is a sweep."""

import importlib
import re
import sys
from collections.abc import Sequence

COMMANDS = {
    "sweep": "quantize and measure: what qsweep does without a command's name",
    "search": "let Optuna choose the trials, and name the best",
    "report": "the page of a sweep again, or of several side by side",
    "score": "artifacts that exist, compared with a model or with a reference pack",
    "pack": "a file with all that a comparison needs of a reference",
    "certify": "is an artifact no worse than its model by more than a margin? and what would decide it",
    "export": "a winner with tokenizer, model card and serving commands",
    "store": "the copy of the store that machines share: what it holds, and what it lacks",
    "prune": "what the store holds, and what can go",
    "doctor": "what this machine can do, and what to install for the rest",
    "env": "environments of their own, for libraries that conflict with qsweep's",
    "status": "how far a sweep is, what runs where, and what failed",
    "worker": "run jobs of a sweep that wait in a queue, here",
    "sync": "log to MLflow what a tracker that was away missed",
    "ui": "MLflow's UI, opened at the runs",
    "sweeps": "the sweeps that are kept as files",
}
"""Every command, a module of its name here, with what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, 2 where the first word is neither command nor option.

    Args:
        arguments: what was typed behind ``qsweep``; None for the process's own, and then the command
            is the whole process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = "sweep"
    if words and words[0] in COMMANDS:
        name = words.pop(0)
    elif words and re.fullmatch(r"[A-Za-z][\w-]*", words[0]):
        from qsweep.base.schema import nearest

        print(
            f"error: {words[0]!r} is neither a command nor an override (NAME=VALUE)"
            f"{nearest(words[0], COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    if arguments is None:
        sys.argv[1:] = words
    try:
        run = importlib.import_module(f"qsweep.commands.{name}").main
    except KeyboardInterrupt:
        return 130
    return run(None if arguments is None else words)
