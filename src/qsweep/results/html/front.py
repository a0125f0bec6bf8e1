"""The Pareto front of size and quality."""

from collections.abc import Sequence

from qsweep.results.html.data import is_finite
from qsweep.results.rows import Row


def front(rows: Sequence[Row], cost: str = "size_gb", loss: str = "ppl_ratio") -> list[Row]:
    """The rows that no other beats in both: smaller is better in either. Smallest first.

    Of rows that are equal in both, one is kept.
    """
    usable = [row for row in rows if is_finite(row.get(cost)) and is_finite(row.get(loss))]
    kept: list[Row] = []
    for row in sorted(usable, key=lambda row: (row[cost], row[loss])):
        if not kept or row[loss] < kept[-1][loss]:
            kept.append(row)
    return kept
