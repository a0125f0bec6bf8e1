"""What is told to a person while a command works, beside what it prints."""

import sys


def say(line: str) -> None:
    """Tell the person something at once, on the standard error."""
    print(line, file=sys.stderr, flush=True)
