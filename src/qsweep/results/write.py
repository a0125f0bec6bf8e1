"""Writes a sweep's table and pages."""

from collections.abc import Sequence
from pathlib import Path

from qsweep.base.files import write_text
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
    write_text(table, to_csv(rows(records)))
    write_text(page, results_markdown(directory.name, records, command))
    if kept := capabilities_markdown(directory.name, records):
        write_text(directory / "capabilities.md", kept)
    return table, page
