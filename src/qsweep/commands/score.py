"""``qsweep score ARTIFACT... --reference PACK|MODEL``: which of these files is how good.

Each ARTIFACT, whoever made it, is measured against the reference as a trial of one sweep:
perplexity, its ratio to the reference's, divergence, top-1 agreement, size, verdict. The reference is a
pack (qsweep pack), a choice of model= or a directory. Overrides are those of a sweep; with a pack,
corpora and presets are by default the pack's own.
"""

import sys
from collections.abc import Sequence

from qsweep.base.disk import disk_errors
from qsweep.commands.entry import Parser, absolute, command, command_parser
from qsweep.commands.pack import model_words
from qsweep.sweep.overrides import quote


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0: all finished, 1: one failed or none finished, 2: a wrong option."""
    from qsweep.api.artifacts import measure_artifacts
    from qsweep.results.scores import scores_table
    from qsweep.sweep.session import command_line

    typed = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_intermixed_args(typed)
    overrides = [word for word in options.words if _is_override(word)]
    artifacts = [word for word in options.words if not _is_override(word)]
    if not artifacts:
        parser().error("the following arguments are required: ARTIFACT")
    words = [*reference_words(options.reference), *overrides]
    with disk_errors():
        sweep = measure_artifacts(artifacts, words, command_line(["score", *typed]))
    print("\n".join(scores_table([sweep.records[key] for key in dict.fromkeys(sweep.asked)])))
    reference = next((r for r in sweep.shown if r.reference and r.finished), None)
    if reference is not None and reference.primary is not None:
        measured = reference.primary
        print(
            f"against {reference.model}, ppl {measured.metrics['ppl']:.4g} on {measured.corpus} "
            f"({measured.preset})"
        )
    print(f"results in {sweep.directory}")
    return sweep.exit_code


def reference_words(reference: str) -> list[str]:
    """What ``--reference`` says, as overrides. Raises ConfigError."""
    if absolute(reference).is_file():
        return [f"model.pack={quote(str(absolute(reference)))}"]
    return model_words(reference, "--reference")


def _is_override(word: str) -> bool:
    # A path may hold an equals sign, too; then it is there.
    return "=" in word and not absolute(word).exists()


def parser() -> Parser:
    """Its options."""
    parser = command_parser("score", __doc__, outputs=False)
    parser.add_argument(
        "words", nargs="+", metavar="ARTIFACT", help="artifacts, and overrides (NAME=VALUE)"
    )
    parser.add_argument(
        "--reference", required=True, metavar="PACK|MODEL", help="what they are compared with"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
