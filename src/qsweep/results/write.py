"""Writes a sweep's table and pages."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from qsweep.base.files import write_bytes, write_text
from qsweep.results.beside import beside_others
from qsweep.results.record import Record
from qsweep.results.rows import rows, to_csv


def write_results(
    directory: Path, records: Sequence[Record], command: str = ""
) -> tuple[Path, Path]:
    """Write ``results.csv`` and ``results.md`` into a sweep's directory, each atomically.

    Returns their paths.
    """
    from qsweep.results.capabilities import capabilities_markdown
    from qsweep.results.markdown import results_markdown

    table, page = directory / "results.csv", directory / "results.md"
    write_text(table, to_csv(beside_others(rows(records))))
    write_text(page, results_markdown(directory.name, records, command))
    if kept := capabilities_markdown(directory.name, records):
        write_text(directory / "capabilities.md", kept)
    write_tensors(directory, records)
    return table, page


def tensors_file(key: str) -> str:
    """Where the table of a trial's tensors lies beside results and report."""
    return f"tensors/{key}.csv"


def write_tensors(directory: Path, records: Iterable[Record]) -> None:
    """Write the tables of trials' tensors into a directory, those that the store still has."""
    for record in records:
        source = None if record.tensors is None else record.tensors.file
        if source is None:
            continue
        file = directory / tensors_file(record.key)
        with contextlib.suppress(FileNotFoundError):
            content = Path(source).read_bytes()
            if not file.is_file() or file.read_bytes() != content:
                write_bytes(file, content)
