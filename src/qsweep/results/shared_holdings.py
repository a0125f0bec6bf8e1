"""What the copy of a store holds that machines share, for whoever makes room there."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import get_args

from qsweep.base import remote_entries as entries
from qsweep.base.objects import Objects
from qsweep.base.store import Kind


@dataclass(frozen=True)
class SharedHolding:
    """One entry. ``size`` is in bytes, all that was ever sent of it included."""

    kind: Kind
    key: str
    size: int
    written: datetime


@dataclass(frozen=True)
class SharedHoldings:
    """All entries, and the names of files that belong to none."""

    objects: Objects
    entries: list[SharedHolding]
    left_over: list[str]


def look_at_shared(objects: Objects) -> SharedHoldings:
    """Go through a remote copy. Only names, sizes and times are read. Raises RemoteError."""
    found: list[SharedHolding] = []
    left: list[str] = []
    for kind in get_args(Kind):
        sizes = entries.sizes(objects, kind)
        found += [
            SharedHolding(kind, key, sizes.get(key, 0), datetime.fromtimestamp(time, UTC))
            for key, time in sorted(entries.written(objects, kind).items())
        ]
        left += entries.left_over(objects, kind)
    return SharedHoldings(objects, found, left)


def remove_shared(objects: Objects, holdings: Iterable[SharedHolding]) -> None:
    """Delete entries: of each the manifest first, so that no part of one is taken for it.

    Whoever is fetching one at that moment finds a file missing, and makes the entry anew.

    Raises:
        RemoteError: The remote cannot be written.
    """
    for one in holdings:
        entries.delete(objects, one.kind, one.key)
