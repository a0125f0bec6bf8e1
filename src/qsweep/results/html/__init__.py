"""The report: one self-contained page of one or more sweeps, with Markdown, CSV and a picture.

Records become groups of trials that may be compared (``data``), each panel is a function from a
group to a picture and words (``overview``, ``options``, ``costs``, ``tokens``), and ``page`` puts
them into one HTML file.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from qsweep.results.html.data import SweepData, merge
from qsweep.results.record import Record

__all__ = ["report_sweep", "write_report"]

# A picture of more points is larger than it is of use.
_PICTURE_POINTS = 2000


def write_report(sweeps: Sequence[SweepData], page: Path, find=None) -> list[Path]:
    """Write ``page`` and, beside it, its Markdown, CSV and first picture; returns what was written.

    ``find`` tells where a measurement's per-token arrays are, by default in the store.
    """
    from qsweep.base.files import write_text
    from qsweep.results.arrays import stored_arrays
    from qsweep.results.beside import beside_others
    from qsweep.results.html.page import render
    from qsweep.results.markdown import results_markdown
    from qsweep.results.rows import rows, to_csv
    from qsweep.results.write import write_tensors

    records = merge(sweeps, find or stored_arrays)
    command = "; ".join(sweep.command for sweep in sweeps if sweep.command)
    title = ", ".join(sweep.name for sweep in sweeps)
    texts = {
        page: render(sweeps, find or stored_arrays),
        page.with_suffix(".csv"): to_csv(beside_others(rows(records), find or stored_arrays)),
        page.with_suffix(".md"): results_markdown(title, records, command),
    }
    if picture := _picture(records):
        texts[page.with_suffix(".svg")] = picture
    for path, text in texts.items():
        write_text(path, text)
    write_tensors(page.parent, records)
    return list(texts)


def report_sweep(
    directory: Path, records: Sequence[Record], command: str, warn: Callable[[str], None]
) -> None:
    """Write a sweep's ``report.html`` and ``report.svg`` at its end; ``warn`` if that fails.

    A sweep's results stand whether or not they can be drawn.
    """
    from qsweep.base.disk import disk_full, is_disk_full
    from qsweep.base.files import write_text
    from qsweep.results.html.page import render

    try:
        sweep = SweepData(directory.name, command, list(records))
        write_text(directory / "report.html", render([sweep]))
        if picture := _picture(merge([sweep])):
            write_text(directory / "report.svg", picture)
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        line = disk_full(directory) if is_disk_full(error) else line
        warn(f"warning: no report was written ({line}); qsweep report tries again")


def _picture(records: Sequence[Record]) -> str | None:
    from qsweep.results.html.data import groups
    from qsweep.results.html.overview import quality_against_size
    from qsweep.results.html.vega import svg

    found = groups(records)
    if not found or len(found[0].primary_rows) > _PICTURE_POINTS:
        return None
    panel = quality_against_size(found[0])
    return svg(panel.spec) if panel and panel.spec else None
