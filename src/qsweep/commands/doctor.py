"""``python -m qsweep.doctor``: what this machine can do, and what to install for the rest.

Each line is *ok*, *missing* (something optional), *warning* or *error*; an error means that the main
job, ``python -m qsweep -m quant=gptq,awq``, cannot run, and the exit code is 1.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from qsweep.base.numbers import one_line
from qsweep.base.secrets import hidden
from qsweep.commands.entry import Parser, command

Status = Literal["ok", "missing", "warning", "error"]
_MARKS = {"ok": "ok     ", "missing": "missing", "warning": "WARNING", "error": "ERROR  "}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``fix`` is a command or a sentence, empty where all is well."""

    area: str
    name: str
    status: Status
    detail: str
    fix: str = ""

    def __post_init__(self) -> None:
        # Addresses of hubs and trackers may hold passwords.
        object.__setattr__(self, "detail", hidden(self.detail))
        object.__setattr__(self, "fix", hidden(self.fix))


@dataclass(frozen=True)
class Places:
    """Where to look: the outputs folder, and a tracker other than its own."""

    outputs: Path
    tracking: str | None = None


Check = Callable[[Places], Iterator[Finding]]


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Look at everything and say it; 1 if the main job cannot run."""
    options = _parser().parse_args(arguments)
    findings = examine(Places(options.outputs.expanduser().absolute(), options.tracking))
    works = not any(finding.status == "error" for finding in findings)
    if options.json:
        content = {"works": works, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(content, indent=1))
    else:
        _tell(findings)
        print("\nThe main job can run." if works else "\nThe main job cannot run: see ERROR above.")
    return int(not works)


def examine(places: Places) -> list[Finding]:
    """All findings. A check that itself fails is a finding, not a traceback."""
    from qsweep.commands.doctor_checks import CHECKS

    findings = []
    for check in CHECKS:
        try:
            findings += list(check(places))
        except Exception as error:
            name = check.__name__.replace("_", " ")
            line = one_line(f"{type(error).__name__}: {error}")
            findings.append(Finding("doctor", name, "warning", f"could not look: {line}"))
    return findings


def _tell(findings: Sequence[Finding]) -> None:
    area = ""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        if finding.area != area:
            area = finding.area
            print(f"\n{area}")
        print(f"  {_MARKS[finding.status]}  {finding.name.ljust(width)}  {finding.detail}")
        if finding.fix:
            print(f"  {' ' * (width + 11)}{finding.fix}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m qsweep.doctor", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--outputs", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs"
    )
    parser.add_argument("--tracking", metavar="URI", help="the tracker to reach")
    return parser


if __name__ == "__main__":
    sys.exit(main())
