"""A study's journal file: one JSON object per line, appended by every process that shares it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qsweep.base.files import read_regular
from qsweep.base.typed_json import JsonMismatch, parse

if TYPE_CHECKING:
    from optuna.storages import JournalStorage


@dataclass(frozen=True)
class _Operation:
    op_code: int


class JournalDamaged(Exception):
    """A line of a journal is none. Says which."""


def open_journal(file: Path) -> "JournalStorage":
    """Open a journal, or begin one.

    Raises:
        JournalDamaged: there is something else in it than a journal's lines.
        OSError: it may not be read or written.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if file.exists():
        with file.open("ab"):
            pass  # only to see whether it may be written
        if not _is_ended(read_regular(file)):
            _cut(file)
        _check(read_regular(file))
    return JournalStorage(JournalFileBackend(str(file)))


def _is_ended(content: bytes) -> bool:
    return not content or content.endswith(b"\n")


def _cut(file: Path) -> None:
    """Cut off the half line that a killed writer left, onto which the next one would write."""
    from optuna.storages.journal import JournalFileSymlinkLock

    # No process is in the midst of a line while this is held.
    lock = JournalFileSymlinkLock(str(file))
    lock.acquire()
    try:
        content = read_regular(file)
        whole = content.rfind(b"\n") + 1
        if not _is_ended(content) and not content[whole:].startswith(b"{"):
            raise JournalDamaged("its last line is none of a journal")
        os.truncate(file, whole)
    finally:
        lock.release()


def _check(content: bytes) -> None:
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            parse(_Operation, line, unknown="ignore")
        except JsonMismatch as error:
            raise JournalDamaged(f"line {number} is none of a journal") from error
