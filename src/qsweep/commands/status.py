"""``qsweep status``: how far a sweep is, what runs where, what failed and why, and how to go on."""

import contextlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.console import say
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.files import read_json
from qsweep.base.secrets import is_hidden
from qsweep.commands.entry import Parser, command, command_parser
from qsweep.commands.queue_option import add_sweep_and_queue
from qsweep.launch.queue.hints import QUEUE_VARIABLE, given_queue, queue_file, queue_url
from qsweep.launch.queue.hints import command as command_of
from qsweep.launch.slurm import describe
from qsweep.results.record import Record
from qsweep.results.record_file import read_records

if TYPE_CHECKING:
    from qsweep.launch.queue.overview import Overview

_STATES = ("finished", "failed", "skipped", "running", "ready", "waiting")
_SHOWN = 20


@command(invalid=QsweepError)
def main(arguments: Sequence[str] | None = None) -> int:
    """Print it; 0: there is such a sweep, 2: there is none, or its queue cannot be reached."""
    options = parser().parse_args(arguments)
    folder = options.outputs / "sweeps" / options.sweep
    records = [record for _, record in read_records(folder) if record is not None]
    queued, url = _queued(options)
    if queued is None and not records and not folder.is_dir():
        raise QsweepError(_no_such_sweep(options))
    for line in _lines(options.sweep, queued, records):
        print(line)
    submitted = describe(options.outputs, options.sweep)
    for line in submitted:
        print(line)
    recorded = {record.key: record.status for record in records}
    for line in _how_to_go_on(options, folder, queued, url, recorded, bool(submitted)):
        print(line)
    return 0


def parser() -> Parser:
    """Its options."""
    parser = command_parser("status", __doc__)
    add_sweep_and_queue(parser)
    return parser


def _queued(options: Any) -> "tuple[Overview | None, str | None]":
    """What the queue says, and the URL that it was given by."""
    given = given_queue(options.queue)
    if given is None and not queue_file(options.outputs).is_file():
        return None, None
    from qsweep.base.databases import DatabaseError, sqlite_path
    from qsweep.launch.queue.database import Database
    from qsweep.launch.queue.overview import overview

    url = queue_url(given, options.outputs)
    with contextlib.suppress(DatabaseError):  # what opens it says so
        if (file := sqlite_path(url)) is not None and not file.exists():
            raise QsweepError(f"--queue={url}: no such file")  # and it is not to be made
    try:
        database = Database(url, "--queue")
    except ConfigError as error:
        if given is not None:
            raise
        say(f"note: {error}")  # the sweep may have nothing to do with it
        return None, None
    try:
        return overview(database, options.sweep), given
    finally:
        database.close()


def _no_such_sweep(options: Any) -> str:
    known = sorted(path.name for path in options.outputs.glob("sweeps/*") if path.is_dir())
    there = f"; there are {', '.join(known)}" if known else ""
    queue = "" if options.queue else "; a queue elsewhere is named with --queue=URL"
    return f"no sweep {options.sweep!r} in {options.outputs}{there}{queue}"


def _lines(sweep: str, queued: "Overview | None", records: Sequence[Record]) -> Iterator[str]:
    ended = {record.key: record.status for record in records}
    failed = {r.key: (r.name, r.reason or "") for r in records if r.status == "failed"}
    if queued is not None:
        # A trial that is in the queue, too, is there anew, or the same.
        ended = {key: state for key, state in ended.items() if key not in queued.open}
        ended |= queued.unseen
        failed = {key: told for key, told in failed.items() if ended.get(key) == "failed"}
        failed |= queued.failed
    counts = {state: list(ended.values()).count(state) for state in _STATES}
    if queued is not None:
        counts |= {state: queued.counts.get(state, 0) for state in ("running", "ready", "waiting")}
    told = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    yield f"sweep {sweep}: {told or 'no trials yet'}"
    if queued is not None:
        yield from _in_queue(queued)
    told_failed = [f"{name}: {reason}" for name, reason in failed.values()]
    yield from _section("failed", told_failed, counts["failed"])


def _in_queue(queued: "Overview") -> Iterator[str]:
    if queued.preparations:
        told = ", ".join(f"{n} {state}" for state, n in queued.preparations.items())
        yield f"preparations: {told}"
    yield from _section(
        "running",
        [
            f"{one.name} on {one.host} for {_time(one.seconds)}"
            + (f", attempt {one.attempt}" if one.attempt > 1 else "")
            + (f", its lease ended {_time(one.late_s)} ago" if one.late_s else "")
            for one in queued.running
        ],
        queued.counts.get("running", 0) + queued.preparations.get("running", 0),
    )
    yield from _section(
        "workers",
        [
            f"{one.name}: {one.slots} at once on {one.gpus or 'no'} GPU{'s' * (one.gpus != 1)}, "
            f"last heartbeat {_time(one.seconds)} ago{'' if one.alive else ' (gone?)'}"
            for one in queued.workers
        ],
        len(queued.workers),
    )
    if queued.stuck is not None:
        yield queued.stuck
    if queued.head is not None:
        name, seconds = queued.head
        yield f"head: {name}, last heartbeat {_time(seconds)} ago"
    elif queued.left:
        yield "head: none; workers go on without"


def _section(title: str, lines: Sequence[str], count: int) -> Iterator[str]:
    """Some lines, of which there are ``count`` in all."""
    shown = lines[:_SHOWN]
    if shown:
        yield f"{title}:"
        yield from (f"  {line}" for line in shown)
    if count > len(shown):
        yield f"  … and {count - len(shown)} more"


def _how_to_go_on(
    options: Any,
    folder: Path,
    queued: "Overview | None",
    url: str | None,
    recorded: Mapping[str, str],
    submitted: bool,
) -> Iterator[str]:
    unfinished = "failed" in recorded.values()
    if queued is not None:
        if queued.left and not submitted and not any(one.alive for one in queued.workers):
            start = command_of("worker", options.sweep, url, options.outputs)
            yield f"no worker is there; start one: {start}"
        unfinished = queued.head is None and (unfinished or _is_to_be_collected(queued, recorded))
    if unfinished and (command := _command(folder)):
        yield f"go on: {_attached(command)}"


def _is_to_be_collected(queued: "Overview", recorded: Mapping[str, str]) -> bool:
    """Whether jobs are left, or ended without a head that has recorded them."""
    unseen = queued.unseen.items()
    if queued.left or any(recorded.get(id) != state for id, state in unseen):
        return True
    # One who came back may have found all in the store, and never asked the queue.
    return not queued.closed and not unseen


def _attached(command: str) -> str:
    """A command that collects results, though it left them to workers before."""
    try:
        words = shlex.split(command)
    except ValueError:  # somebody has changed the file
        return command
    words = [w for w in words if not (w.startswith("--det") or "launch.detach=" in w)]
    # A password is nowhere written down: the URL that held it is to be given anew.
    open_words = [w for w in words if not ("launch.queue=" in w and is_hidden(w))]
    queue = "" if open_words == words else f"{QUEUE_VARIABLE}=URL "
    return f"{queue}{shlex.join(open_words)}"


def _command(folder: Path) -> str | None:
    try:
        content = read_json(folder / "sweep.json")
    except (OSError, ValueError):
        return None
    found = content.get("command") if isinstance(content, Mapping) else None
    return found if isinstance(found, str) else None


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    sys.exit(main())
