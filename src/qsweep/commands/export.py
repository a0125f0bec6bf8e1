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
from qsweep.base.store import MANIFEST, Store
from qsweep.commands.entry import Parser, absolute, command, command_parser
from qsweep.commands.shared import add_remote, shared_store
from qsweep.commands.trials import find_trial
from qsweep.models.architecture import CAUSAL, auto_class
from qsweep.models.config import read_config
from qsweep.results.card import model_card
from qsweep.results.record import Record

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
