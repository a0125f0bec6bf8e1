"""``qsweep export TRIAL DIR``: an artifact ready to be served, with a card that says all.

TRIAL is a trial's key or its beginning, its name, or ``best`` for the most quality per GB that a
serving runtime loads. DIR is a new directory: the artifact's files, the tokenizer and generation
settings, and a README.md with how it was made, what was measured, and how to serve it.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from qsweep.base.errors import QsweepError
from qsweep.base.files import sync_tree, write_bytes
from qsweep.base.schema import nearest
from qsweep.base.store import MANIFEST, Store
from qsweep.commands.entry import Parser, absolute, command, command_parser
from qsweep.commands.shared import add_remote, shared_store
from qsweep.models.architecture import CAUSAL, auto_class
from qsweep.models.config import read_config
from qsweep.results.answers import answers
from qsweep.results.card import model_card
from qsweep.results.draws import pooled, singles
from qsweep.results.labels import with_distinct_names
from qsweep.results.record import Record
from qsweep.results.sources import known_sweeps, read_sweep
from qsweep.results.traits import seed_of
from qsweep.results.winner import sentence

# What a server wants beside the weights, where the artifact's format does not carry it.
_COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "*.model", "chat_template*", "generation_config.json",
    "LICENSE*", "NOTICE*",
)  # fmt: skip


@command(invalid=QsweepError)
def main(arguments: Sequence[str] | None = None) -> int:
    """Export one artifact; 0: done, 1: it could not be written, 2: there is no such trial."""
    options = parser().parse_args(arguments)
    record = find_trial(options.outputs, options.trial, options.sweep)
    written = export(record, shared_store(options.outputs, options.remote), options.directory)
    print(f"{record.name}: {written}\nhow to serve it: {written / 'README.md'}")
    return 0


def find_trial(outputs: Path, word: str, sweep: str | None = None) -> Record:
    """The finished trial that a word means.

    Raises:
        QsweepError: there is none, or several; the line names near ones or their keys.
    """
    sweeps = known_sweeps(outputs)
    if sweep is not None and sweep not in sweeps:
        raise QsweepError(f"no sweep {sweep!r} in {outputs}{nearest(sweep, sweeps)}")
    chosen = [sweeps[sweep]] if sweep is not None else list(sweeps.values())
    records: dict[str, Record] = {}
    for record in (r for directory in chosen for r in read_sweep(directory).records):
        if record.key not in records or not record.implied:
            records[record.key] = record  # asked for once is asked for
    finished = [r for r in pooled(records.values()) if r.finished and not r.reference]
    if not finished:
        raise QsweepError(f"no finished trial in {outputs}; --outputs DIR names another folder")
    if word == "best":
        return _one_draw(_best(finished))
    every = singles(finished)
    found = [r for r in every if r.key.startswith(word)] if len(word) >= 4 else []
    # As a table calls it, and where that is not enough to tell, as its trial does.
    shown = with_distinct_names(finished)
    labelled = {r.key for r in shown if word in (r.name, _setting(r))}
    found = found or [r for r in finished if r.key in labelled]
    found = found or [r for r in finished if word in (r.name, _setting(r))]
    if len(found) > 1:
        raise QsweepError(
            f"{word!r} means {len(found)} trials; give a key: "
            + ", ".join(f"{r.key[:12]} ({r.calibration or r.backend})" for r in found)
        )
    if not found:
        raise QsweepError(f"no trial {word!r}{nearest(word, {_setting(r) for r in finished})}")
    return _one_draw(found[0])


def _one_draw(record: Record) -> Record:
    # Not the one that came out best: it is that by luck.
    if record.draws is None:
        return record
    first, number = record.draws[0], len(record.draws)
    print(
        f"note: {record.name} is {number} draws; that of seed {seed_of(first)} is exported",
        file=sys.stderr,
    )
    return first


def _best(records: Sequence[Record]) -> Record:
    # What leads is what "best" asks for; that its lead is none is said, and nothing is refused.
    found = answers(with_distinct_names(records))
    if not found:
        raise QsweepError("no artifact here is one that a serving runtime loads")
    if len(found) > 1:
        leaders = ", ".join(
            f"{one.record.name} ({one.record.key[:12]}{one.measured and ', ' + one.measured})"
            for one in found
        )
        raise QsweepError(
            "'best' means one trial of each model and each way of measuring it; "
            f"give a key, or one sweep: {leaders}"
        )
    if not found[0].is_best:
        line = sentence(found[0].decision, found[0].record.name)
        print(f"note: {line}; it is exported all the same", file=sys.stderr)
    return next(r for r in records if r.key == found[0].record.key)


def export(record: Record, store: Store, directory: Path) -> Path:
    """Copy a trial's artifact into a new directory, complete, or not at all.

    Raises:
        QsweepError: the directory is not empty, or the artifact is gone or damaged.
    """
    directory = directory.absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise QsweepError(f"{directory} is not empty: choose a new directory")
    if record.existed:
        place = record.artifact.path if record.artifact else None
        raise QsweepError(
            f"{record.name} was made by somebody else and lies at {place}: serve it from there; "
            "only what a sweep has made is exported"
        )
    key = record.artifact.key if record.artifact else None
    entry = store.find("artifacts", str(key), full=True)
    if entry is None:
        again = f"; to make it again: {record.command}" if record.command else ""
        raise QsweepError(f"the artifact of {record.name} is pruned or damaged{again}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.exporting")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(entry.path, temporary, ignore=shutil.ignore_patterns(MANIFEST))
        _add_companions(record, temporary)
        files = sorted(file.name for file in temporary.iterdir())
        auto = auto_class(read_config(temporary)) if "config.json" in files else None
        card = model_card(record, entry.content, files, directory.name, auto or CAUSAL)
        write_bytes(temporary / "README.md", card.encode())
        if any(name.endswith(".gguf") for name in files):
            first = next(name for name in files if name.endswith(".gguf"))
            write_bytes(temporary / "Modelfile", f"FROM ./{first}\n".encode())
        sync_tree(temporary)
        if directory.exists():
            directory.rmdir()
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _add_companions(record: Record, out: Path) -> None:
    from qsweep.base.config_files import resolve_recorded

    path = resolve_recorded(dict(record.config), "model.path")
    source = Path(path) if path else None
    if source is None or not source.is_dir():
        return
    for pattern in _COMPANIONS:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and not (out / file.name).exists():
                shutil.copy(file, out / file.name)


def _setting(record: Record) -> str:
    return record.name.removeprefix(f"{record.model} ")


def parser() -> Parser:
    """Its options."""
    parser = command_parser("export", __doc__)
    parser.add_argument("trial", metavar="TRIAL", help="a key, a name, or best")
    parser.add_argument("directory", metavar="DIR", type=absolute, help="a new directory")
    parser.add_argument("--sweep", help="look only in this sweep")
    add_remote(parser, "where what is not here lies; default: that of the last sweep with one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
