"""``qsweep pack MODEL -o FILE``: one file with all that others need to compare artifacts with MODEL.

MODEL is a choice of model= or a directory. What a sweep would measure of the unquantized model is
measured, or found in the store, on every corpus by every preset, and written into FILE: token ids and
windows, the inputs of the output head, the head, the noise floors. `qsweep score ARTIFACT
--reference FILE` then needs neither the model nor the texts. Overrides are those of a sweep:
corpus=[A,B] eval.presets=[paper,llamacpp] eval.max_windows=64 device=cuda.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qsweep.base.config_files import group_choices
from qsweep.base.disk import disk_errors
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.files import shown
from qsweep.base.schema import nearest
from qsweep.commands.entry import Parser, absolute, command, command_parser
from qsweep.formats.artifact_files import is_gguf
from qsweep.sweep.overrides import quote


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pack; 0: written, 1: it could not be made, 2: a wrong option."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_intermixed_args(typed)
    with disk_errors():
        _pack(options, typed)
    return 0


def _pack(options: argparse.Namespace, typed: Sequence[str]) -> None:
    from qsweep.api.composition import compose_trials
    from qsweep.search.batch import one_batch
    from qsweep.sweep.config import sweep_config, trial_config
    from qsweep.sweep.naming import default_name
    from qsweep.sweep.packing import cut_to_tokens, reference_plans, write_reference_pack
    from qsweep.sweep.session import command_line, open_store, run_sweep

    out: Path = options.out
    if out.is_dir():
        raise ConfigError(f"-o {options.out}: is a directory; give the name of a file")
    words = [*model_words(options.model, "MODEL"), "quant=none", *options.overrides]
    configs = one_batch(compose_trials(words), words)
    if len(configs) > 1:
        raise ConfigError("a pack is of one reference; several corpora are corpus=[A,B]")
    _check(trial_config(configs[0]))
    store = open_store(sweep_config(configs[0]))
    if options.tokens is not None:
        configs = cut_to_tokens(configs[0], options.tokens, store)
    name = sweep_config(configs[0]).name or f"pack-{default_name(words, 'config')}"
    sweep = run_sweep(configs, name, command_line(["pack", *typed]))
    for key in sweep.asked:
        if not (record := sweep.records[key]).finished:
            raise QsweepError(f"{record.name}: {record.reason}")
    summary = write_reference_pack(reference_plans(configs, store), store, out, options.head)
    print(
        f"{shown(out)}: {summary.file_bytes / 1e6:.1f} MB, of which states "
        f"{summary.states_bytes / 1e6:.1f} and head {summary.head_bytes / 1e6:.1f}; "
        f"{summary.windows} windows, {summary.tokens} scored tokens; "
        f"signature {summary.signature[:16]}"
    )


def _check(trial: object) -> None:
    from qsweep.sweep.config import TrialConfig

    assert isinstance(trial, TrialConfig)
    if trial.model.pack is not None:
        raise ConfigError("model.pack: a pack is made of the model itself, not of another pack")
    if trial.quant.method != "none":
        raise ConfigError("quant: a pack is of the unquantized model; leave it out")
    if not trial.eval.divergence:
        raise ConfigError("eval.divergence=false: a pack is there to measure divergence from it")
    if trial.eval.tasks:
        raise ConfigError("eval.tasks: a pack holds no task's results; leave them out")


def model_words(model: str, what: str) -> list[str]:
    """A model as it is typed, a choice of ``model=``, a directory or a GGUF file, as overrides.

    Raises:
        ConfigError: it is neither; ``what`` is what it was typed for.
    """
    choices = group_choices()["model"]
    if model in choices:
        return [f"model={model}"]
    place = absolute(model)
    if place.is_dir() or is_gguf(place):
        return [f"model.path={quote(str(place))}"]
    raise ConfigError(
        f"{what} {model}: neither a directory, a GGUF file nor a model{nearest(model, choices)}"
    )


def parser() -> Parser:
    """Its options."""
    from qsweep.evaluate.packs.heads import HEADS

    parser = command_parser("pack", __doc__, outputs=False)
    parser.add_argument(
        "model", metavar="MODEL", help="a choice of model=, a directory, or a GGUF file"
    )
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="as those of a sweep")
    parser.add_argument(
        "-o", "--out", type=absolute, required=True, metavar="FILE", help="the pack"
    )
    parser.add_argument(
        "--tokens",
        type=_count,
        metavar="N",
        help="of each corpus and preset only the first windows with N scored tokens",
    )
    parser.add_argument(
        "--head",
        choices=HEADS,
        default=HEADS[0],
        help="a smaller head, refused where it adds more than the noise floor; default: exact",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
