"""The end of a job's log, which travels with its result where the log itself does not."""

from pathlib import Path

LONGEST_LOG = 64 << 10
"""Bytes of a job's log that go with its result; the last ones."""


def tail_of(log: Path) -> str:
    """The end of a log; empty where there is none."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - LONGEST_LOG, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    text = text.replace("\0", "�")  # which PostgreSQL's texts cannot hold
    if size <= LONGEST_LOG:
        return text
    return f"… {size - LONGEST_LOG} bytes before this are left out\n{text}"
