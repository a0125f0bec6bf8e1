"""Writes a sweep's table and pages."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from qsweep.base.files import write_bytes, write_text
from qsweep.results.beside import beside_others
from qsweep.results.draws import pooled, singles
from qsweep.results.record import Record
from qsweep.results.rows import rows, to_csv


def write_results(
    directory: Path, records: Sequence[Record], command: str = ""
) -> tuple[Path, Path]:
    """Write ``results.csv`` and ``results.md`` into a sweep's directory, each atomically.

    Where rows are means over draws, ``draws.csv`` has those of each draw. Returns the first two's paths.
    """
    from qsweep.results.capabilities import capabilities_markdown
    from qsweep.results.markdown import results_markdown

    table, page = directory / "results.csv", directory / "results.md"
    settings = pooled(records)
    write_text(table, to_csv(beside_others(rows(settings))))
    if any(record.draws for record in settings):
        write_text(directory / "draws.csv", draws_csv(settings))
    write_text(page, results_markdown(directory.name, settings, command))
    if kept := capabilities_markdown(directory.name, settings):
        write_text(directory / "capabilities.md", kept)
    write_tensors(directory, [*records, *(one for one in settings if one.draws)])
    return table, page


def draws_csv(settings: Iterable[Record]) -> str:
    """The rows of single draws, of those records that pool several."""
    return to_csv(rows(singles(record for record in settings if record.draws)))


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
