"""What all trials that are run together must agree on."""

from collections.abc import Sequence
from typing import Any

from qsweep.search.settings import search_config
from qsweep.search.sweep_file import check_options
from qsweep.sweep.compose import Composed
from qsweep.sweep.config import check_one_sweep
from qsweep.sweep.option_names import known_options
from qsweep.sweep.pack_choices import with_pack


def one_batch(configs: Sequence[Any], typed: Sequence[str] = ()) -> list[Composed]:
    """Resolved configurations of one sweep, or of a batch of a search, checked.

    Args:
        configs: As they were composed.
        typed: The overrides that a person gave: what they do not choose, a reference pack may.

    Raises:
        ConfigError: an option that nothing reads, or several values of what a sweep has one of.
    """
    from omegaconf import OmegaConf

    from qsweep.sweep.compose import plain

    composed = [c if isinstance(c, Composed) else plain(c, OmegaConf) for c in configs]
    resolved = [with_pack(config, typed) for config in composed]
    check_options(resolved[0], known_options(""))
    for config in resolved:
        if search := config.get("search"):
            # How a trial was found is no part of it.
            config["search"] = {"fidelity": search_config(search).fidelity}
            config.written["search"] = dict(config["search"])
    check_one_sweep(resolved)
    return resolved
