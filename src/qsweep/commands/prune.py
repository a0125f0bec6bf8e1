"""``qsweep prune``: what the store holds, and making room in it.

Without a rule it only tells, and with --delete it removes what killed processes left half-written.
--off-front picks the artifacts that are on no sweep's Pareto front of size and quality,
--older-than those (and caches of references and importance matrices) sealed before a date or so
many days ago; with both, what either picks. Nothing is deleted without --delete.

Records, measurements and timings are never deleted: reports stay as they are, and a sweep that is
run again makes only the artifacts that are missing.

With --remote URL the copy that machines share is pruned as well: of what the rules pick here, what is
there, and of what is there alone, what --older-than picks. --delete also removes there what senders
that were killed left. Without it nothing is removed there, and what goes here is fetched when needed.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

from qsweep.base.cleanup import remove_abandoned
from qsweep.base.errors import QsweepError
from qsweep.base.numbers import gigabytes
from qsweep.base.remote import Remote
from qsweep.base.schema import nearest
from qsweep.commands.entry import Parser, command, command_parser
from qsweep.commands.shared import add_remote, shared_store
from qsweep.results.holdings import Holding, Holdings, Prunable, half_written, look, remove
from qsweep.results.shared_holdings import (
    SharedHolding,
    SharedHoldings,
    look_at_shared,
    remove_shared,
)


@command(invalid=QsweepError)
def main(arguments: Sequence[str] | None = None) -> int:
    """Tell, or delete; 0: done, 1: something could not be deleted, 2: a wrong option."""
    options = parser().parse_args(arguments)
    outputs = options.outputs
    before = moment(options.older_than) if options.older_than else None
    remote = _remote(outputs, options.remote) if options.remote is not None else None
    holdings = look(outputs)
    for name in options.sweeps:
        if name not in holdings.sweeps:
            raise QsweepError(f"no sweep {name!r} in {outputs}{nearest(name, holdings.sweeps)}")
    _tell(holdings, outputs)
    shared = None
    if remote is not None:
        shared = look_at_shared(remote.objects)
        _tell_shared(shared)
    if options.delete and (gone := remove_abandoned(outputs)):
        print(f"{len(gone)} leftovers of processes that were killed are removed")
    if options.delete and shared is not None and shared.left_over:
        for name in shared.left_over:
            shared.objects.delete(name)
        print(f"{_files(shared.left_over)} that no entry names: removed from the remote copy")
    if before is None and not options.off_front:
        return 0
    chosen = choose(holdings, off_front=options.off_front, before=before, sweeps=options.sweeps)
    code = _prune(holdings, chosen, delete=options.delete)
    if shared is not None:
        # With a sweep's name, only of what that sweep made, which is known of what is here.
        old = None if options.sweeps else before
        _prune_shared(shared, choose_shared(shared, holdings, chosen, old), delete=options.delete)
    return code


def choose(
    holdings: Holdings,
    *,
    off_front: bool,
    before: datetime | None,
    sweeps: Sequence[str] = (),
) -> list[Holding]:
    """What the rules pick, the largest first; with ``sweeps``, only of what those alone made.

    What a running sweep may be using is left alone: all that was sealed since it began, and all
    that its own records name.
    """

    def picked(entry: Holding) -> bool:
        if entry.in_use or (sweeps and not (entry.sweeps and entry.sweeps <= set(sweeps))):
            return False
        prunable = entry.kind in get_args(Prunable)
        old = prunable and before is not None and entry.sealed < before
        # An artifact that no record names was never compared with anything.
        beaten = off_front and entry.kind == "artifacts" and bool(entry.sweeps)
        return old or (beaten and not entry.on_front)

    found = [entry for entry in holdings.entries if picked(entry)]
    return sorted(found, key=lambda entry: -entry.size)


def choose_shared(
    shared: SharedHoldings,
    holdings: Holdings,
    chosen: Sequence[Holding],
    before: datetime | None,
) -> list[SharedHolding]:
    """What goes from the remote copy, the largest first.

    That is what goes here, and of what is not here (another machine made it) what can be made again
    and was written before a date.
    """
    going = {(entry.kind, entry.key) for entry in chosen}
    here = {(entry.kind, entry.key) for entry in holdings.entries}

    def picked(entry: SharedHolding) -> bool:
        name = (entry.kind, entry.key)
        old = before is not None and entry.written < before and entry.kind in get_args(Prunable)
        return name in going or (old and name not in here)

    found = [entry for entry in shared.entries if picked(entry)]
    return sorted(found, key=lambda entry: -entry.size)


def moment(text: str) -> datetime:
    """``30d`` (so many days ago) or ``2026-01-31``. Raises QsweepError."""
    try:
        if text.endswith("d") and text[:-1].isdigit():
            return datetime.now(UTC) - timedelta(days=int(text[:-1]))
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise QsweepError(
            f"--older-than={text}: neither days (30d) nor a date (2026-01-31)"
        ) from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _remote(outputs: Path, url: str) -> Remote:
    remote = shared_store(outputs, url).remote
    assert remote is not None  # a URL was given
    remote.probe_reading()
    return remote


def _tell(holdings: Holdings, outputs: Path) -> None:
    print(f"{holdings.store.root}: {_gb(holdings.entries)} GB in {len(holdings.entries)} entries")
    for kind in dict.fromkeys(entry.kind for entry in holdings.entries):
        held = [entry for entry in holdings.entries if entry.kind == kind]
        print(f"  {kind:14}{len(held):6} entries {_gb(held):>10} GB")
    for name, running in sorted(holdings.sweeps.items()):
        held = [e for e in holdings.entries if e.kind == "artifacts" and name in e.sweeps]
        front = sum(entry.on_front for entry in held)
        note = "  (running)" if running else ""
        print(f"  sweep {name}: {len(held)} artifacts, {_gb(held)} GB, {front} on a front{note}")
    if left := half_written(holdings.store.root):
        print(f"  {len(left)} half-written entries; --delete removes those that nobody is making")


def _prune(holdings: Holdings, chosen: Sequence[Holding], *, delete: bool) -> int:
    for entry in chosen:
        why = ", ".join(sorted(entry.sweeps)) or "no sweep"
        print(f"{'delete' if delete else 'would delete'} {entry.kind}/{entry.key} "
              f"{gigabytes(entry.size / 1e9)} GB ({entry.name or why})")  # fmt: skip
    kept = [entry for entry in holdings.entries if entry.in_use]
    if kept:
        print(f"{len(kept)} entries are left alone: a running sweep may be using them")
    if not chosen:
        print("nothing to delete")
        return 0
    if not delete:
        print(f"{_gb(chosen)} GB could be freed; --delete frees them")
        return 0
    freed: list[Holding] = []
    locked: list[Holding] = []
    for entry in chosen:
        (freed if remove(holdings.store, entry) else locked).append(entry)
    print(f"{_gb(freed)} GB freed" + (f", {len(locked)} entries are locked" if locked else ""))
    return int(bool(locked))


def _tell_shared(shared: SharedHoldings) -> None:
    print(f"{shared.objects.url}: {_gb(shared.entries)} GB in {len(shared.entries)} entries")
    for kind in dict.fromkeys(entry.kind for entry in shared.entries):
        held = [entry for entry in shared.entries if entry.kind == kind]
        print(f"  {kind:14}{len(held):6} entries {_gb(held):>10} GB")
    if shared.left_over:
        print(f"  {_files(shared.left_over)} that no entry names; --delete removes such files")


def _prune_shared(shared: SharedHoldings, chosen: Sequence[SharedHolding], *, delete: bool) -> None:
    for entry in chosen:
        print(f"{'delete' if delete else 'would delete'} {shared.objects.url}: "
              f"{entry.kind}/{entry.key} {_gb([entry])} GB")  # fmt: skip
    if delete:
        remove_shared(shared.objects, chosen)
    if chosen:
        freed = "freed there" if delete else "could be freed there; --delete frees them"
        print(f"{_gb(chosen)} GB {freed}")


def _files(names: Sequence[str]) -> str:
    return "1 file" if len(names) == 1 else f"{len(names)} files"


def _gb(entries: Sequence[Holding | SharedHolding]) -> str:
    return gigabytes(sum(entry.size for entry in entries) / 1e9)


def parser() -> Parser:
    """Its options."""
    parser = command_parser("prune", __doc__)
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP", help="only what these alone made")
    parser.add_argument("--off-front", action="store_true", help="artifacts on no Pareto front")
    parser.add_argument("--older-than", metavar="DATE", help="2026-01-31, or 30d for 30 days ago")
    add_remote(parser, "prune this copy of the store, too")
    parser.add_argument("--delete", action="store_true", help="really delete")
    return parser


if __name__ == "__main__":
    sys.exit(main())
