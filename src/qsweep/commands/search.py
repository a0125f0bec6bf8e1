"""``qsweep search [--config-name=FILE] [search=NAME] OVERRIDES``: let Optuna choose the trials.

The space is a sweep file's (qsweep search --config-name=pareto), or what has several values:
qsweep search quant=gptq,awq bits=3,4,8. What is looked for is a choice of the group search, and can
be overridden as everything: search=per_gb search.trials=20 "search.constraints=['kld <= 0.05']".
The sweep's folder gets answer.md with the answer; the same command goes on where it stopped.

It is short for -m +search=NAME hydra/sweeper=qsweep_optuna; docs/search.md explains the options.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from qsweep.base.errors import ConfigError
from qsweep.base.shipped import folder
from qsweep.commands.entry import Parser, command, command_parser
from qsweep.commands.sweep import parser as hydra_parser
from qsweep.commands.sweep import run_hydra


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
    groups = _chosen_in(options.config_name, options.config_dir)
    if "hydra/sweeper" not in groups:
        found += ["-m"] * (not options.multirun and not (options.cfg or options.info))
        found.append("hydra/sweeper=qsweep_optuna")
    if "search" not in groups:
        # Hydra replaces a choice that a file has made, and adds one with a plus.
        found = [f"+{word}" if word.startswith("search=") else word for word in found]
        if not any(word.startswith("+search=") for word in found):
            found.append("+search=default")
    return found


def _chosen_in(config_name: str | None, config_dir: str | None) -> set[str]:
    """The groups that a sweep file's defaults list chooses, and those files that it builds on."""
    from omegaconf import OmegaConf

    places = [*([Path(config_dir)] if config_dir else []), folder("sweeps")]
    found: set[str] = set()
    names, seen = [config_name], {"config", "_self_", None}
    while names:
        if (name := names.pop()) in seen:
            continue
        seen.add(name)
        file = next((p / f"{name}.yaml" for p in places if (p / f"{name}.yaml").is_file()), None)
        try:
            defaults = OmegaConf.load(file).get("defaults") or [] if file else []
            for entry in OmegaConf.to_container(OmegaConf.create(defaults)) or ():
                if isinstance(entry, str):
                    names.append(entry)
                else:
                    found |= {str(group).removeprefix("override ") for group in entry}
        except Exception:  # Hydra says what is wrong with the file
            return found
    return found


def parser() -> Parser:
    """For its help alone."""
    return command_parser("search", __doc__, outputs=False)
