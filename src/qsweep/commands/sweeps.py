"""``qsweep sweeps``: the sweeps that are kept as files, a line each."""

import sys
from collections.abc import Sequence
from pathlib import Path

from qsweep.base.config_files import config_folder
from qsweep.base.files import read_regular
from qsweep.commands.entry import Parser, command, command_parser


def parser() -> Parser:
    """It has no options."""
    return command_parser("sweeps", __doc__, outputs=False)


def listing() -> list[tuple[str, str]]:
    """Names of the sweep files, and what the first comment of each says."""
    return [
        (file.stem, first_comment(file)) for file in sorted(config_folder("sweeps").glob("*.yaml"))
    ]


def first_comment(file: Path) -> str:
    """The first comment of a YAML file; empty if it has none."""
    lines = read_regular(file).decode("utf-8", "replace").splitlines()
    return next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the list, and how to run one."""
    parser().parse_args(arguments)
    found = listing()
    width = max((len(name) for name, _ in found), default=0)
    for name, description in found:
        print(f"{name:<{width}}  {description}")
    print(f"\n{'run one:':<{width}}  qsweep --config-name=NAME [overrides]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
