"""Rows beside others: where each may stand, and what is nearest to it in size."""

from collections.abc import Sequence

from qsweep.results.arrays import FindArrays, stored_arrays
from qsweep.results.peers import with_peers
from qsweep.results.record import Row
from qsweep.results.ties import with_standings


def beside_others(rows: Sequence[Row], find: FindArrays = stored_arrays) -> list[Row]:
    """Rows with all that is known of them by others; ``find`` tells where arrays are."""
    return with_standings(with_peers(rows, find), find)
