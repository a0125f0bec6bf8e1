"""Sweeps as they lie in an outputs folder."""

from collections.abc import Collection, Sequence
from pathlib import Path

from qsweep.base.errors import QsweepError
from qsweep.base.files import read_json
from qsweep.base.schema import nearest
from qsweep.base.secrets import hidden_tree
from qsweep.results.html.data import SweepData
from qsweep.results.record_file import read_records


def sweeps_in(outputs: Path, names: Sequence[str] = ()) -> list[SweepData]:
    """The named sweeps, or the newest one if none is named.

    Raises:
        QsweepError: there is no such sweep; the line names near ones.
    """
    known = known_sweeps(outputs)
    if not known:
        raise QsweepError(f"no sweeps in {outputs}; --outputs DIR names another folder")
    require_known(names, known, outputs)
    chosen = dict.fromkeys(names) or [max(known, key=lambda n: known[n].stat().st_mtime)]
    return [read_sweep(known[name]) for name in chosen]


def require_known(names: Sequence[str], known: Collection[str], where: Path | str) -> None:
    """Refuse names of sweeps that are not ``known`` in ``where``, with near ones. Raises QsweepError."""
    for name in names:
        if name not in known:
            raise QsweepError(f"no sweep {name!r} in {where}{nearest(name, known)}")


def known_sweeps(outputs: Path) -> dict[str, Path]:
    """The sweeps' folders by name."""
    found = sorted((outputs / "sweeps").glob("*/"))
    return {
        path.name: path
        for path in found
        if (path / "sweep.json").is_file() or (path / "trials").is_dir()
    }


def read_sweep(directory: Path) -> SweepData:
    """A sweep's records; what cannot be read as one is counted."""
    records, unreadable = [], 0
    for _, record in read_records(directory):
        if record is None:
            unreadable += 1
        else:
            records.append(record)
    command = _command(directory / "sweep.json")
    problems = [f"{unreadable} files in trials/ are no records"] if unreadable else []
    return SweepData(directory.name, command, records, problems)


def _command(file: Path) -> str:
    try:
        facts = hidden_tree(read_json(file))
    except (OSError, ValueError):
        return ""
    command = facts.get("command") if isinstance(facts, dict) else None
    return command if isinstance(command, str) else ""
