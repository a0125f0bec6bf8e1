"""What a store holds, which sweeps it came from, and what may be in use right now."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from qsweep.base.locks import FileLock, LockTimeout
from qsweep.base.publish import withdraw
from qsweep.base.store import MANIFEST, Kind, Store
from qsweep.results.answers import answers
from qsweep.results.draws import pooled, singles
from qsweep.results.html.data import Group, front, groups
from qsweep.results.record import Record
from qsweep.results.sources import known_sweeps, read_sweep

# What can be made again from what is left.
Prunable = Literal["artifacts", "importances", "references", "models", "packs"]


@dataclass(frozen=True)
class Holding:
    """One sealed entry. ``size`` in bytes; ``sweeps`` whose records name it."""

    kind: Kind
    key: str
    size: int
    sealed: datetime
    sweeps: frozenset[str]
    name: str
    on_front: bool
    in_use: bool


@dataclass(frozen=True)
class Holdings:
    """All entries that can be pruned or are kept, and the sweeps with whether each is running."""

    store: Store
    entries: list[Holding]
    sweeps: dict[str, bool]


def look(outputs: Path) -> Holdings:
    """Go through a store. Only names, sizes and times are read, and the sweeps' records."""
    store = Store.below(outputs)
    directories = known_sweeps(outputs)
    running = {name: _is_held(path / ".lock") for name, path in directories.items()}
    since = min(
        (_started(directories[name]) for name, held in running.items() if held),
        default=datetime.max.replace(tzinfo=UTC),
    )
    named: dict[str, set[str]] = {}
    names: dict[str, str] = {}
    kept: set[str] = set()
    busy: set[str] = set()
    for sweep, directory in directories.items():
        records = read_sweep(directory).records
        for record in records:
            if key := _artifact_key(record):
                named.setdefault(key, set()).add(sweep)
                names[key] = record.name
                if running[sweep]:
                    busy.add(key)
        kept |= _on_front(records)
    entries = [
        Holding(
            kind=kind,
            key=path.name,
            size=_size(path),
            sealed=(sealed := _time(path / MANIFEST)),
            sweeps=frozenset(named.get(path.name, ())),
            name=names.get(path.name, ""),
            on_front=path.name in kept,
            in_use=sealed >= since
            or path.name in busy
            or (kind in ("importances", "references", "models", "packs") and any(running.values())),
        )
        for kind in get_args(Kind)
        for path in _sealed(store.root / kind)
        if not path.name.startswith(".")
    ]
    return Holdings(store, entries, running)


def remove(store: Store, entry: Holding) -> bool:
    """Delete an entry unless somebody holds its lock; returns whether it is gone.

    It vanishes at once, by a rename: what a killed deletion leaves goes at the next start.
    """
    if entry.kind not in get_args(Prunable):
        raise ValueError(f"{entry.kind} are never pruned")
    try:
        with store.lock(entry.kind, entry.key, timeout_s=0):
            withdraw(store.path(entry.kind, entry.key))
    except LockTimeout:
        return False
    except FileNotFoundError:
        return True
    return True


def half_written(root: Path) -> list[Path]:
    """Entries that somebody is making, or was when it was killed."""
    return [path for kind in get_args(Kind) for path in (root / kind).glob(".*.tmp")]


def _on_front(records: list[Record]) -> set[str]:
    kept = set()
    settings = pooled(records)
    by_key = {record.key: record for record in settings}
    for group in groups(settings):
        shown = {row.key for row in front(group.quantized)} | set(_best(group))
        kept |= {_artifact_key(one) for one in singles(by_key[key] for key in shown)}
    return {key for key in kept if key}


def _best(group: Group) -> Iterator[str]:
    # Kept whether or not its lead is beyond noise: what it says is for others to decide.
    yield from (answer.record.key for answer in answers(group.records))


def _artifact_key(record: Record) -> str | None:
    return record.artifact.key if record.artifact else None


def _sealed(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (p for p in sorted(folder.iterdir()) if (p / MANIFEST).is_file())


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())


def _time(file: Path) -> datetime:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def _started(directory: Path) -> datetime:
    file = directory / "sweep.json"
    return _time(file) if file.is_file() else datetime.min.replace(tzinfo=UTC)


def _is_held(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout_s=0, optional=True) as held:
            return not held.held  # without locks nobody can tell
    except LockTimeout:
        return True
