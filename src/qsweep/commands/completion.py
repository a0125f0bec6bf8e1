"""What a shell that completes words is told beside Hydra's options: commands, and theirs."""

import importlib
import os
import sys
from collections.abc import Sequence

from qsweep.commands.main import COMMANDS

# What takes overrides; Hydra completes them.
_TAKES_OVERRIDES = ("sweep", "search")


def complete(requests: Sequence[str]) -> bool:
    """Answer a shell's question as far as it is about commands; whether that was all of it.

    Args:
        requests: ``install=SHELL``, ``uninstall=SHELL`` or ``query=SHELL``. In a query the
            environment's ``COMP_LINE`` has what is typed so far; what fits is printed, a line each.
    """
    if not any(request.startswith("query=") for request in requests):
        # Hydra completes for the program's name, and for "python" where that is a script.
        sys.argv[0] = "qsweep"
        return False
    line = os.environ.get("COMP_LINE", "")
    program, *words = line.split() or [""]
    if line.endswith(" ") or not words:
        words.append("")
    *before, word = words
    if not before:
        _print([name for name in COMMANDS if name.startswith(word)])
        return False
    if before[0] in _TAKES_OVERRIDES:
        os.environ["COMP_LINE"] = " ".join([program, *before[1:], word])
        return False
    if before[0] in COMMANDS:
        parser = importlib.import_module(f"qsweep.commands.{before[0]}").parser()
        options = [text for action in parser._actions for text in action.option_strings]
        _print([text for text in options if text.startswith(word)])
        return True
    return False


def _print(words: Sequence[str]) -> None:
    print("".join(f"{word}\n" for word in words), end="")
