"""``qsweep store [push]``: the copy of the store that machines share: what it holds, and what it lacks.

Without a word it only tells, by kind of entry. `push` sends what is here and not there: what was made
before there was a remote copy, what could not be sent when it was made, and files that are gone there
or are of another size. The remote copy is that of the last sweep of this folder with store.remote=URL,
or --remote URL.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from qsweep.base import remote_entries as entries
from qsweep.base.errors import QsweepError
from qsweep.base.manifest import MANIFEST
from qsweep.base.numbers import gigabytes
from qsweep.base.remote import Remote
from qsweep.base.store import Kind, Store
from qsweep.commands.entry import Parser, command, command_parser
from qsweep.commands.shared import add_remote, shared_store


@command(invalid=QsweepError)
def main(arguments: Sequence[str] | None = None) -> int:
    """Tell, or send; 0: done, 1: something could not be sent, 2: a wrong option, or no remote copy."""
    options = parser().parse_args(arguments)
    store = shared_store(options.outputs, options.remote, push=options.action == "push")
    if (remote := store.remote) is None:
        raise QsweepError(
            f"{store.root}: no sweep of it had a remote copy; give one with --remote URL"
        )
    remote.probe_reading()
    if remote.push:
        remote.probe_writing()
    missing = _tell(store, remote)
    return _push(missing, remote) if remote.push else 0


def _tell(store: Store, remote: Remote) -> list[Path]:
    """Print what is where; returns the entries that the remote copy lacks, or has not whole."""
    print(f"{store.root} and {remote.url}")
    missing: list[Path] = []
    for kind in get_args(Kind):
        here = {path.name: path for path in _entries(store.root / kind)}
        there = entries.keys(remote.objects, kind)
        lacking = [path for key, path in here.items() if key not in there]
        both = [path for key, path in here.items() if key in there]
        damaged = entries.incomplete(remote.objects, kind, both) if both else []
        if here or there:
            note = f", {len(damaged)} without all files there" if damaged else ""
            print(f"  {kind:14}{len(here):6} here {len(there):6} there {len(both):6} in both{note}")
        missing += lacking + damaged
    if missing:
        print(f"{remote.url} lacks {_several(missing)}, {_gb(missing)} GB")
    else:
        print(f"{remote.url} has all that is here")
    return missing


def _push(missing: Sequence[Path], remote: Remote) -> int:
    failed = 0
    for path in missing:
        if remote.send(path):
            print(f"sent {path.parent.name}/{path.name} {_gb([path])} GB", flush=True)
        else:
            failed += 1
    if failed:
        print(f"error: {failed} of {len(missing)} could not be sent", file=sys.stderr)
    return int(failed > 0)


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return [path for path in found if (path / MANIFEST).is_file()]


def _several(paths: Sequence[Path]) -> str:
    return "1 entry" if len(paths) == 1 else f"{len(paths)} entries"


def _gb(paths: Sequence[Path]) -> str:
    size = sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file())
    return gigabytes(size / 1e9)


def parser() -> Parser:
    """Its options."""
    parser = command_parser("store", __doc__)
    parser.add_argument("action", nargs="?", choices=["push"], help="send what the remote lacks")
    add_remote(parser, "the remote copy; default: that of the last sweep that had one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
