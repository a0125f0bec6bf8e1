"""Trials of which there is nothing but llama.cpp's own run: how their figures are shown.

Where no dense model can be made of a file (:mod:`qsweep.formats.gguf.layout`), llama.cpp alone can run it.
What that gives is measured by other means than everything else, on a sample of windows, so these
trials stand apart and take no part in verdicts, checks and comparisons.
"""

from collections.abc import Iterable

from qsweep.results.columns.derived import OWN_RUN
from qsweep.results.columns.table import BECAUSE, KLD_NATIVE, TOP1_AGREEMENT_NATIVE
from qsweep.results.columns.views import lines_of
from qsweep.results.record import Record, Row
from qsweep.results.rows import ranked

NOTE = (
    "No dense model can be made of these files, so llama.cpp itself ran them on a sample of windows "
    "beside the reference. No verdict, no comparison with other rows."
)


def lines(records: Iterable[Record]) -> list[list[str]]:
    """A row of the table ``own_run`` for each such trial."""
    found = [record for record in ranked(records) if record.only_own_run]
    return lines_of([Row(record, label=record.name) for record in found], "own_run")


def sentence(record: Record) -> str:
    """One such trial in one line: its figures, and why it has no others."""
    kld, top1, why = (c.cell(Row(record)) for c in (KLD_NATIVE, TOP1_AGREEMENT_NATIVE, BECAUSE))
    return f"{OWN_RUN}: KLD {kld} nats, top-1 {top1}; {why}"
