"""``qsweep report``: a page of one sweep, or of several side by side."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qsweep.base.errors import QsweepError
from qsweep.commands.entry import Parser, absolute, command, command_parser


@command(invalid=QsweepError)
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; 0: written, 1: it could not be written, 2: there is no such sweep."""
    options = parser().parse_args(arguments)
    try:
        return _report(options)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}; try --out FILE", file=sys.stderr)
        return 1


def _report(options: argparse.Namespace) -> int:
    from qsweep.formats.hardware import find_card
    from qsweep.results.html import write_report
    from qsweep.results.on_card import on_card
    from qsweep.results.sources import sweeps_in

    outputs = options.outputs
    card = None if options.hardware is None else find_card(options.hardware, "--hardware")
    if options.tracking is None:
        sweeps, find = sweeps_in(outputs, options.sweeps), None
    else:
        from qsweep.tracking.records import TrackedSweeps

        tracked = TrackedSweeps(options.tracking, options.experiment, outputs)
        sweeps, find = tracked.sweeps(options.sweeps), tracked.arrays
    page = _page(options, outputs, [sweep.name for sweep in sweeps])
    if card is not None:
        sweeps = [on_card(sweep, card) for sweep in sweeps]
        page = page if options.out is not None else page.with_name(f"report-{card.name}.html")
    written = write_report(sweeps, page, find)
    print("\n".join(str(path) for path in written))
    if options.log:
        if options.tracking is None:
            _log(outputs, [sweep.name for sweep in sweeps], written)
        else:
            tracked.log([sweep.name for sweep in sweeps], written)
    return 0


def _page(options: argparse.Namespace, outputs: Path, names: Sequence[str]) -> Path:
    if options.out is not None:
        is_page = options.out.suffix.lower() in (".html", ".htm")
        return options.out if is_page else options.out / "report.html"
    if len(names) == 1 and options.tracking is None:
        return outputs / "sweeps" / names[0] / "report.html"
    joined = "+".join(name.replace("/", "-") for name in names)[:120]
    return outputs / "reports" / joined / "report.html"


def _log(outputs: Path, names: Sequence[str], written: Sequence[Path]) -> None:
    from qsweep.tracking import TrackerError
    from qsweep.tracking.mlflow.reader import log_files

    for name in names:
        try:
            log_files(outputs / "sweeps" / name, written)
        except TrackerError as error:
            print(f"note: not logged to the run of {name}: {error}", file=sys.stderr)


def parser() -> Parser:
    """Its options."""
    parser = command_parser("report", __doc__)
    parser.add_argument(
        "sweeps", nargs="*", metavar="SWEEP", help="one, or several to compare; default: the newest"
    )
    parser.add_argument("--tracking", metavar="URI", help="read from this MLflow tracker instead")
    parser.add_argument("--experiment", default="qsweep", help="with --tracking; default: qsweep")
    parser.add_argument(
        "--out", type=absolute, metavar="FILE", help="the page; default: by the sweep"
    )
    parser.add_argument(
        "--hardware", metavar="CARD", help="only what runs on it: h100, rtx4090, b200, cpu, ..."
    )
    parser.add_argument(
        "--no-log", dest="log", action="store_false", help="do not log it to the sweep's run"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
