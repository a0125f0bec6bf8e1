"""``qsweep sync``: log to MLflow what a sweep could not."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qsweep.base.errors import QsweepError
from qsweep.base.secrets import is_hidden
from qsweep.commands.entry import Parser, command, command_parser
from qsweep.tracking.identity import FILE, is_copy
from qsweep.tracking.mlflow.journal import TrackingTarget, current_target
from qsweep.tracking.mlflow.sweeplog import recorded_target, sync_sweep
from qsweep.tracking.settings import TrackerError, TrackingConfig


@command(invalid=QsweepError)
def main(arguments: Sequence[str] | None = None) -> int:
    """Log what is missing; 0: all is logged, 1: something is not, 2: there is no such sweep."""
    options = parser().parse_args(arguments)
    outputs = options.outputs
    directories = [_sweep(outputs, name) for name in options.sweeps] or _tracked(outputs)
    place = _place(options, outputs)
    if not directories:
        print(f"nothing to do: no sweep in {outputs} has been tracked")
        return 0
    logged, failed = 0, 0
    for directory in directories:
        try:
            number = sync_sweep(directory, place or _own_target(directory, outputs), outputs)
        except TrackerError as error:
            print(f"error: {directory.name}: {error}", file=sys.stderr)
            failed += 1
            continue
        if number:
            print(f"{directory.name}: {number} trial{'s' * (number > 1)} logged")
        logged += number
    if not logged and not failed:
        print("nothing to do: everything is logged")
    return int(failed > 0)


def parser() -> Parser:
    """Its options."""
    parser = command_parser("sync", __doc__)
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP", help="only these; default: all")
    parser.add_argument("--uri", help="log to this tracker instead of the sweep's own")
    parser.add_argument("--experiment", default="qsweep", help="with --uri; default: qsweep")
    return parser


def _tracked(outputs: Path) -> list[Path]:
    """The sweeps that are tracked: by their notes or, should these be lost, by their records.

    A copy of a sweep's folder is most likely a backup: it is logged where it is named.
    """
    return [
        directory
        for directory in sorted(outputs.glob("sweeps/*/"))
        if not is_copy(directory)
        and ((directory / FILE).exists() or recorded_target(directory, outputs) is not None)
    ]


def _sweep(outputs: Path, name: str) -> Path:
    known = {path.parent.name: path.parent for path in outputs.glob("sweeps/*/trials")}
    if name not in known:
        there = f"; there are {', '.join(sorted(known))}" if known else ""
        raise QsweepError(f"no sweep {name!r} in {outputs}{there}")
    return known[name]


def _place(options: argparse.Namespace, outputs: Path) -> TrackingTarget | None:
    if options.uri is None:
        return None
    return TrackingTarget.of(
        TrackingConfig(uri=options.uri, experiment=options.experiment), outputs
    )


def _own_target(directory: Path, outputs: Path) -> TrackingTarget:
    noted = current_target(directory)
    if noted is None or is_hidden(noted.uri):
        # A password that came from the environment may be there again.
        recorded = recorded_target(directory, outputs)
        if recorded and (noted is None or noted.label == recorded.label):
            noted = recorded
    if noted is None:
        return TrackingTarget.of(TrackingConfig(), outputs)
    if is_hidden(noted.uri):
        raise TrackerError(
            f"the password of {noted.uri} is not kept on disk; give the whole URI with --uri"
        )
    return noted


if __name__ == "__main__":
    sys.exit(main())
