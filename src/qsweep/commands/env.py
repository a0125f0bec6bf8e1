"""``qsweep env list|create NAME|check NAME|remove NAME``: environments of their own, for quantizers.

Some libraries cannot share qsweep's environment; each gets one that is made on demand. The name
llama.cpp stands for its converter, which is unpacked into qsweep's own environment.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from qsweep.base.errors import BackendUnavailable
from qsweep.base.files import read_json
from qsweep.commands.entry import Parser, absolute, command, command_parser
from qsweep.quantizers.environments.create import (
    MANIFEST,
    Environment,
    Notice,
    check,
    create,
    remove,
)
from qsweep.quantizers.environments.install import INSTALLERS
from qsweep.quantizers.environments.spec import load_spec, spec_names

# llama.cpp's converter needs none of its own: it is unpacked into qsweep's.
_CONVERTER = "llama.cpp"


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 2 for what was typed wrong, 1 for what went wrong."""
    env = parser()
    options = env.parse_args(arguments)
    if options.command == "list":
        return _list(options.folder)
    names = f"{', '.join(spec_names())}, {_CONVERTER}, or a YAML file"
    if options.name is None:
        env.error(f"{options.command} needs a NAME: {names}")
    try:
        if options.name == _CONVERTER:
            return _converter(options.command, options.sdist)
        environment = Environment(load_spec(options.name), options.folder)
        if options.command == "create":
            return _create(environment, options.python, options.installer)
        if options.command == "remove":
            print(f"{options.name}: {'removed' if remove(environment) else 'was not there'}")
            return 0
        problems = check(environment)
    except KeyboardInterrupt:
        print("interrupted; nothing half-made was left", file=sys.stderr)
        raise
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(f"{options.name}: works ({environment.python})")
    return int(bool(problems))


def parser() -> Parser:
    """Its options."""
    parser = command_parser("env", __doc__, outputs=False)
    parser.add_argument("command", choices=("list", "create", "check", "remove"))
    parser.add_argument("name", nargs="?", help="an environment of the list, or a YAML file")
    parser.add_argument(
        "--folder", type=absolute, default="outputs/envs", metavar="DIR", help="where they are"
    )
    parser.add_argument("--python", type=Path, metavar="PATH", help="make it with this interpreter")
    parser.add_argument("--installer", choices=INSTALLERS, default="auto")
    parser.add_argument(
        "--sdist", type=absolute, metavar="FILE",
        help=f"for {_CONVERTER}: llama-cpp-python's source package, not fetched",
    )  # fmt: skip
    return parser


def _converter(wanted: str, sdist: Path | None) -> int:
    from qsweep.formats.gguf.converter import converter_dir, install, uninstall

    if wanted == "create":
        print(f"llama.cpp's converter is in {install(sdist)}")
    elif wanted == "remove":
        print(f"{_CONVERTER}: {'removed' if uninstall() else 'was not there'}")
    else:
        print(f"{_CONVERTER}: is there ({converter_dir()})")
    return 0


def _list(folder: Path) -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("environment", "state", "library", "python", "size"):
        table.add_column(title)
    for name in spec_names():
        environment = Environment(load_spec(name), folder)
        state, manifest = environment.state(), environment.manifest()
        library = f"{environment.spec.library} {environment.spec.pins()[environment.spec.library]}"
        python = manifest["python"] if manifest else environment.spec.python
        size = f"{_bytes(environment.path) / 1e9:.1f} GB" if state != "absent" else ""
        table.add_row(name, state, library, python, size)
    table.add_row(*_converter_row())
    for path in sorted(manifest.parent for manifest in folder.glob(f"*/{MANIFEST}")):
        if path.name not in spec_names():
            table.add_row(*_own(path))
    Console(soft_wrap=True).print(table)
    return 0


def _converter_row() -> list[str]:
    from qsweep.formats.gguf.converter import converter_dir, package_version

    try:
        version = f"llama-cpp-python {package_version()}"
    except BackendUnavailable:
        return [_CONVERTER, "absent", "llama-cpp-python is not installed", "qsweep's", ""]
    try:
        converter_dir()
    except BackendUnavailable:
        return [_CONVERTER, "absent", version, "qsweep's", ""]
    return [_CONVERTER, "ready", version, "qsweep's", ""]


def _own(path: Path) -> list[str]:
    """The row of an environment that was made from a file of the user's own."""
    try:
        content = read_json(path / MANIFEST)
        library = str(content.get("library", ""))
        version = content["packages"].get(library.lower().replace("_", "-"), "")
        python = str(content["python"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return [path.name, "unreadable", "", "", ""]
    size = f"{_bytes(path) / 1e9:.1f} GB"
    return [path.name, "your own", f"{library} {version}".strip(), python, size]


def _create(environment: Environment, python: Path | None, installer: str) -> int:
    name, started = environment.spec.name, time.monotonic()
    with _Display(name) as display:
        made = create(environment, python=python, installer=installer, notice=display.notice)
    seconds = f" in {time.monotonic() - started:.0f} s" if made else ""
    print(f"{name}: {'created' if made else 'is ready'}{seconds} ({environment.python})")
    return 0


class _Display:
    """The step under way and the installer's latest line: live on a terminal, else a line a step."""

    def __init__(self, name: str):
        from rich.console import Console

        self._name, self._step = name, ""
        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status(f"{name}") if self._console.is_terminal else None

    def __enter__(self) -> "_Display":
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    @property
    def notice(self) -> Notice:
        """What :func:`create` tells."""

        def tell(step: str, line: str) -> None:
            from rich.markup import escape

            if self._status:
                room = max(self._console.width - len(self._name) - len(step) - 8, 20)
                self._status.update(f"{self._name}: {step}  [dim]{escape(line[:room])}[/dim]")
            elif step != self._step:
                print(f"{self._name}: {step} {line if step == 'wait' else ''}".rstrip(), flush=True)
            self._step = step

        return tell


def _bytes(path: Path) -> int:
    return sum(f.lstat().st_size for f in path.rglob("*") if f.is_file() and not f.is_symlink())


if __name__ == "__main__":
    sys.exit(main())
