"""Each artifact beside the one of another maker that is nearest in size."""

from collections.abc import Sequence

from qsweep.base import numbers
from qsweep.results.columns.derived import peer_ratio
from qsweep.results.columns.table import SIZE_GB
from qsweep.results.html.panel import Panel
from qsweep.results.record import Row

_MOST = 60
_HEADINGS = (
    "artifact",
    "GB",
    "nearest in size",
    "its GB",
    "ratio to it (95 %)",
    "KLD less its (95 %)",
)


def equal_size(rows: Sequence[Row]) -> Panel | None:
    """A line for each artifact that has such a neighbour; ``rows`` have their peers."""
    shown = [row for row in rows if row.peer is not None and row.measurement]
    shown = [row for row in shown if row.measurement and row.measurement.primary]
    if not shown:
        return None
    shown.sort(key=SIZE_GB.get)
    more = f" The {_MOST} smallest of {len(shown)}." if len(shown) > _MOST else ""
    return Panel(
        id="equal-size",
        title="At equal size",
        note="Perplexity through that of the artifact of another method or maker that is nearest in "
        "size, and the difference of their divergences, in nats. Intervals are paired: both read "
        f"the same windows. Below 1, and below 0, is better; a tie is neither.{more}",
        headings=_HEADINGS,
        lines=[_line(row) for row in shown[:_MOST]],
        wide=True,
    )


def _line(row: Row) -> list[str]:
    found = row.peer
    assert found is not None
    low, high = found.kld_difference_low, found.kld_difference_high
    span = "" if low is None or high is None else f" ({low:.2g} to {high:.2g})"
    difference = "" if found.kld_difference is None else f"{found.kld_difference:+.2g}{span}"
    return [
        row.label, SIZE_GB.cell(row), found.label, numbers.gigabytes(found.size_gb),
        peer_ratio(row), difference,
    ]  # fmt: skip
