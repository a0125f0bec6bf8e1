"""Comparison at equal size: beside each artifact the one of another maker that is nearest in size.

Both were measured on the same windows against the same reference, so their difference has a paired
interval of its own, which is narrower than those of their ratios to the reference: what is hard
about a window is common to both.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from qsweep.base.contents import is_number
from qsweep.evaluate.metrics import clustered_mean, ppl_ratio, student_t
from qsweep.results.arrays import FindArrays, read_arrays, stamp, stored_arrays
from qsweep.results.columns.table import KLD, PPL_RATIO, SIZE_GB
from qsweep.results.comparable import families
from qsweep.results.peer import Peer
from qsweep.results.record import Record, Row
from qsweep.results.winner import MIN_WINDOWS

if TYPE_CHECKING:
    import numpy as np

# Methods that make nothing: what they measure is somebody else's.
THEIRS = ("artifact", "existing")


class Windows(NamedTuple):
    """What a measurement says of each of its windows: float64 [windows] each.

    ``kld`` is None where no divergence was measured.
    """

    nll: "np.ndarray"
    tokens: "np.ndarray"
    kld: "np.ndarray | None"


FindWindows = Callable[[Row], Windows | None]


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
    if mine is None or its is None or len(mine.tokens) != len(its.tokens):
        return found
    if (mine.tokens != its.tokens).any() or len(mine.tokens) < MIN_WINDOWS:
        return found
    paired = ppl_ratio(mine.nll, its.nll, mine.tokens)
    found = replace(
        found, ppl_ratio=paired.value, ppl_ratio_low=paired.low, ppl_ratio_high=paired.high
    )
    if mine.kld is None or its.kld is None:
        return found
    difference = clustered_mean(mine.kld - its.kld, mine.tokens)
    half = student_t(len(mine.tokens) - 1) * (difference.stderr or 0.0)
    return replace(
        found,
        kld_difference=difference.value,
        kld_difference_low=difference.value - half,
        kld_difference_high=difference.value + half,
    )


def ties(row: Row, other: Row, windows: FindWindows) -> bool:
    """Whether neither is better beyond noise; where nothing tells, nothing says that one is."""
    return compared(row, other, windows).tie is not False


def windows_of(row: Row, find: FindArrays = stored_arrays) -> Windows | None:
    """What a row's measurement says of its windows; None where its arrays are gone."""
    if row.measurement is None or (path := find(row.record, row.measurement)) is None:
        return None
    return _read(path, stamp(path))


@lru_cache(maxsize=8192)
def _read(path: Path, stamp: tuple[int, ...]) -> Windows | None:
    import numpy as np

    arrays = read_arrays(path, "window_nll", "window_tokens", "token_kld")
    if arrays is None or not {"window_nll", "window_tokens"} <= set(arrays):
        return None
    nll, tokens = (arrays[name].astype(np.float64) for name in ("window_nll", "window_tokens"))
    kld = arrays.get("token_kld")
    if kld is None or len(kld) != int(tokens.sum()) or not (tokens > 0).all():
        return Windows(nll, tokens, None)
    starts = np.concatenate([[0], np.cumsum(tokens)[:-1]]).astype(np.int64)
    return Windows(nll, tokens, np.add.reduceat(kld.astype(np.float64), starts))


def _comparable(row: Row) -> bool:
    if row.record.reference or row.no_verdict or row.record.implied:
        return False
    return all(
        is_number(v) and math.isfinite(v) and v > 0 for v in (SIZE_GB.get(row), PPL_RATIO.get(row))
    )


def _maker(row: Row) -> tuple[str, ...]:
    record: Record = row.record
    return (record.method, record.backend, record.name if record.method in THEIRS else "")
