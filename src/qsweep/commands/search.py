"""``qsweep search [--config-name=FILE] [search=NAME] OVERRIDES``: let Optuna choose the trials.

The space is a sweep file's (qsweep search --config-name=pareto), or what has several values:
qsweep search quant=gptq,awq bits=3,4,8. What is looked for is a choice of the group search, and can
be overridden as everything: search=per_gb search.trials=20 "search.constraints=['kld <= 0.05']".
The sweep's folder gets answer.md with the answer; the same command goes on where it stopped.

It is short for -m +search=NAME hydra/sweeper=qsweep_optuna; docs/search.md explains the options.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.commands.entry import Parser, command, command_parser, config_loader
from qsweep.commands.sweep import parser as hydra_parser
from qsweep.commands.sweep import run_hydra

_SWEEPER = "qsweep_optuna"


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Search; returns the exit code, as a sweep does."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if {"--help", "-h"} & set(words):
        parser().print_help()
        return 0
    if not words:
        raise ConfigError(
            "a search needs a space: --config-name=pareto, or options with several values "
            "(quant=gptq,awq bits=3,4)"
        )
    return run_hydra(search_arguments(words))


def search_arguments(words: Sequence[str]) -> list[str]:
    """What is typed behind ``qsweep search``, as Hydra wants it: with a sweeper and a search chosen."""
    options = hydra_parser().parse_intermixed_args(words)
    found = list(words)
    chosen = _choices(options.config_name, options.config_dir)
    if chosen.get("hydra/sweeper") != _SWEEPER:
        found += ["-m"] * (not options.multirun and not (options.cfg or options.info))
        if not any(word.startswith("hydra/sweeper=") for word in found):
            found.append(f"hydra/sweeper={_SWEEPER}")
    if "search" not in chosen:
        # Hydra replaces a choice that a file has made, and adds one with a plus.
        found = [f"+{word}" if word.startswith("search=") else word for word in found]
        if not any(word.startswith("+search=") for word in found):
            found.append("+search=default")
    return found


def _choices(config_name: str | None, config_dir: str | None) -> Mapping[str, Any]:
    """The choices of groups that a sweep file makes; none where Hydra will say what is wrong with it."""
    from hydra.types import RunMode

    try:
        loader = config_loader(config_dir)
        config = loader.load_configuration(config_name or "config", [], RunMode.MULTIRUN)
        return dict(config.hydra.runtime.choices)
    except Exception:
        return {}


def parser() -> Parser:
    """For its help alone."""
    return command_parser("search", __doc__, outputs=False)
