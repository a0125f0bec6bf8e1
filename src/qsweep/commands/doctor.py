"""``qsweep doctor``: what this machine can do, and what to install for the rest.

Each line is *ok*, *missing* (something optional), *warning* or *error*; an error means that the main
job, ``qsweep -m quant=gptq,awq``, cannot run, and the exit code is 1.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from qsweep.base.numbers import one_line
from qsweep.commands.entry import Parser, command, command_parser
from qsweep.commands.finding import Finding, Places
from qsweep.commands.shared import add_remote

_MARKS = {"ok": "ok     ", "missing": "missing", "warning": "WARNING", "error": "ERROR  "}


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Look at everything and say it; 1 if the main job cannot run."""
    options = parser().parse_args(arguments)
    findings = examine(Places(options.outputs, options.tracking, options.remote))
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


def parser() -> Parser:
    """Its options."""
    parser = command_parser("doctor", __doc__)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--tracking", metavar="URI", help="the tracker to reach")
    add_remote(parser, "the shared store to reach; default: that of the last sweep with one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
