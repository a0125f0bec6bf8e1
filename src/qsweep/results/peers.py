"""Comparison at equal size: beside each artifact the one of another maker that is nearest in size.

Both were measured on the same windows against the same reference, so their difference has a paired
interval of its own, which is narrower than those of their ratios to the reference: what is hard
about a window is common to both.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from qsweep.base.contents import is_number
from qsweep.results.arrays import FindArrays, stored_arrays
from qsweep.results.columns.table import KLD, PPL_RATIO, SIZE_GB
from qsweep.results.comparable import families
from qsweep.results.peer import Peer
from qsweep.results.record import Record, Row
from qsweep.results.windows import (
    FindWindows,
    kld_difference,
    paired_ratio,
    shared,
    windows_of,
)
from qsweep.results.winner import MIN_WINDOWS

# Methods that make nothing: what they measure is somebody else's.
THEIRS = ("artifact", "existing")


def with_peers(rows: Sequence[Row], find: FindArrays = stored_arrays) -> list[Row]:
    """Rows, each with the one to compare it with: the nearest in size that another maker has.

    For what is somebody else's that is one of ours, where there is one.

    Args:
        rows: Of one or several models, corpora and presets.
        find: Tells where a measurement's arrays are.
    """
    peers = {
        id(row): compared(row, other, partial(windows_of, find=find))
        for found in families(filter(_comparable, rows))
        for row in found
        if (other := nearest(row, found)) is not None
    }
    return [replace(row, peer=peers.get(id(row))) for row in rows]


def nearest(row: Row, others: Iterable[Row]) -> Row | None:
    """The one of another maker that is nearest in size, as a ratio; None if there is none."""
    theirs = row.record.method in THEIRS
    able = [other for other in others if other.key != row.key and _maker(other) != _maker(row)]
    if theirs and (ours := [other for other in able if other.record.method not in THEIRS]):
        able = ours
    size = math.log(SIZE_GB.get(row))
    return min(
        able,
        key=lambda other: (
            abs(math.log(SIZE_GB.get(other)) - size),
            PPL_RATIO.get(other),
            other.key,
        ),
        default=None,
    )


def compared(row: Row, other: Row, windows: FindWindows) -> Peer:
    """A row beside another: its perplexity through the other's, and the difference of divergences."""
    ratio = PPL_RATIO.get(row) / PPL_RATIO.get(other)
    found = Peer(label=other.label, key=other.key, size_gb=SIZE_GB.get(other), ppl_ratio=ratio)
    if KLD.get(row) is not None and KLD.get(other) is not None:
        found = replace(found, kld_difference=KLD.get(row) - KLD.get(other))
    mine, its = windows(row), windows(other)
    if mine is None or its is None or (pair := shared(mine, its)) is None:
        return found
    if len(pair[0]) < MIN_WINDOWS:
        return found
    paired = paired_ratio(*pair)
    if not paired.low > 0:
        return found
    found = replace(
        found,
        ppl_ratio=paired.value,
        ppl_ratio_low=paired.low,
        ppl_ratio_high=paired.high,
    )
    if (difference := kld_difference(*pair)) is None:
        return found
    return replace(
        found,
        kld_difference=difference.value,
        kld_difference_low=difference.low,
        kld_difference_high=difference.high,
    )


def ties(row: Row, other: Row, windows: FindWindows) -> bool:
    """Whether neither is better beyond noise; where nothing tells, nothing says that one is."""
    return compared(row, other, windows).tie is not False


def _comparable(row: Row) -> bool:
    if row.record.reference or row.no_verdict or row.record.implied:
        return False
    return all(
        is_number(v) and math.isfinite(v) and v > 0 for v in (SIZE_GB.get(row), PPL_RATIO.get(row))
    )


def _maker(row: Row) -> tuple[str, ...]:
    record: Record = row.record
    return (record.method, record.backend, record.name if record.method in THEIRS else "")
