"""Trials of which there is nothing but llama.cpp's own run: how their figures are shown.

Where no dense model can be made of a file (:mod:`qsweep.formats.gguf.layout`), llama.cpp alone can run it.
What that gives is measured by other means than everything else, on a sample of windows, so these
trials stand apart and take no part in verdicts, checks and comparisons.
"""

from collections.abc import Iterable

from qsweep.base import numbers as cells
from qsweep.results.record import Record
from qsweep.results.rows import OWN_RUN, only_own_run, ranked

HEADINGS = ("trial", "bpw total", "size GB", "KLD", "top-1", "served by", "because")
NOTE = (
    "No dense model can be made of these files, so llama.cpp itself ran them on a sample of windows "
    "beside the reference. No verdict, no comparison with other rows."
)


def lines(records: Iterable[Record]) -> list[list[str]]:
    """A row of :data:`HEADINGS` for each such trial."""
    return [_line(record) for record in ranked(records) if only_own_run(record)]


def _line(record: Record) -> list[str]:
    artifact = record.get("artifact") or {}
    return [
        record["name"],
        cells.fixed(artifact.get("bpw_total"), 2),
        cells.gigabytes(artifact.get("size_gb")),
        *_figures(record),
        ", ".join(artifact.get("runtimes") or ()),
        cells.one_line(only_own_run(record) or ""),
    ]


def sentence(record: Record) -> str:
    """One such trial in one line: its figures, and why it has no others."""
    kld, top1 = _figures(record)
    return f"{OWN_RUN}: KLD {kld} nats, top-1 {top1}; {cells.one_line(only_own_run(record) or '')}"


def _figures(record: Record) -> tuple[str, str]:
    speed = record.get("speed") or {}
    return (
        cells.with_error(speed.get("kld_native"), speed.get("kld_native_stderr")),
        cells.percent(speed.get("top1_agreement_native")),
    )
