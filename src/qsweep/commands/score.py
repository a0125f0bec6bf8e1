"""``qsweep score ARTIFACT... --reference PACK|MODEL``: which of these files is how good.

Each ARTIFACT, whoever made it, is measured against the reference as a trial of one sweep:
perplexity, its ratio to the reference's, divergence, top-1 agreement, size, verdict. The reference is a
pack (qsweep pack), a choice of model= or a directory; by default the model that the artifact says it
was made of. Overrides are those of a sweep; with a pack, corpora and presets are by default the
pack's own. With --budget: which of them fit into so much memory at a context, and which of those is
best.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qsweep.base.disk import disk_errors
from qsweep.commands.entry import Parser, absolute, command, command_parser
from qsweep.commands.pack import model_words
from qsweep.formats.artifact_files import is_gguf
from qsweep.sweep.overrides import quote

if TYPE_CHECKING:
    from qsweep.results.record import Record


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0: all finished, 1: one failed or none finished, 2: a wrong option."""
    from qsweep.api.artifacts import measure_artifacts
    from qsweep.evaluate.serving_memory import check_serving, parse_bytes
    from qsweep.results.scores import scores_table
    from qsweep.sweep.session import command_line

    typed = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_intermixed_args(typed)
    overrides = [word for word in options.words if _is_override(word)]
    artifacts = [word for word in options.words if not _is_override(word)]
    if not artifacts:
        parser().error("the following arguments are required: ARTIFACT")
    budget = None if options.budget is None else parse_bytes(options.budget)
    check_serving(options.context, options.kv_cache)
    words = [*reference_words(options.reference), *overrides] if options.reference else overrides
    with disk_errors():
        sweep = measure_artifacts(artifacts, words, command_line(["score", *typed]))
    scored = [sweep.records[key] for key in dict.fromkeys(sweep.asked)]
    print("\n".join(scores_table(scored)))
    reference = next((r for r in sweep.shown if r.reference and r.finished), None)
    if reference is not None and reference.primary is not None:
        measured = reference.primary
        print(
            f"against {reference.model}, ppl {measured.metrics['ppl']:.4g} on {measured.corpus} "
            f"({measured.preset})"
        )
    if budget is not None:
        fitting = _what_fits(scored, reference, budget, options.context, options.kv_cache)
        print("\n".join(fitting))
    print(f"results in {sweep.directory}")
    return sweep.exit_code


def _what_fits(
    scored: "Sequence[Record]",
    reference: "Record | None",
    budget: int,
    context: int,
    kv_cache: str,
) -> list[str]:
    from qsweep.evaluate.serving_memory import serving_config
    from qsweep.results.budget import HEADINGS, budget_answer, rows_of
    from qsweep.results.scores import aligned

    if reference is None or reference.artifact is None:
        return ["what fits the budget is not told: the reference was not measured"]
    config = serving_config(Path(str(reference.artifact.path)))
    answer = budget_answer(rows_of(scored), config, budget, context, kv_cache)
    left = {0, len(HEADINGS) - 2, len(HEADINGS) - 1}
    return ["", *aligned([list(HEADINGS), *answer.lines], left), answer.sentence]


def reference_words(reference: str) -> list[str]:
    """What ``--reference`` says, as overrides. Raises ConfigError."""
    if absolute(reference).is_file() and not is_gguf(absolute(reference)):
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
        "--reference",
        metavar="PACK|MODEL",
        help="what they are compared with; by default what the artifacts say they were made of",
    )
    parser.add_argument(
        "--budget", metavar="SIZE", help="memory that one may take when it is served, as 16GB"
    )
    parser.add_argument(
        "--context", type=int, default=4096, metavar="TOKENS", help="of the one sequence served"
    )
    parser.add_argument(
        "--kv-cache", default="f16", metavar="TYPE", help="what its keys and values are kept in"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
