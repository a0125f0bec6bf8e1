"""What all trials that are run together must agree on."""

from collections.abc import Sequence
from typing import Any

from qsweep.search.settings import search_config
from qsweep.search.sweep_file import check_options
from qsweep.sweep.compose import Composed, resolved
from qsweep.sweep.config import check_one_sweep
from qsweep.sweep.draws import drawn
from qsweep.sweep.found import find_artifacts
from qsweep.sweep.option_names import known_options
from qsweep.sweep.pack_choices import with_pack


def one_batch(configs: Sequence[Any], typed: Sequence[str] = ()) -> list[Composed]:
    """Resolved configurations of one sweep, or of a batch of a search, checked.

    Where one asks for several draws, or names several artifacts that exist, there is one for each.

    Args:
        configs: Hydra's, or resolved ones.
        typed: What the command line gives to all of them; what nobody chose, a reference pack may.

    Raises:
        ConfigError: an option that nothing reads, several values of what a sweep has one of, or
            draws that two options name.
    """
    given = [one.partition("=")[0].lstrip("+~") for one in typed]
    each = drawn(resolved(configs), given)
    batch = [with_pack(config, {*given, *config.chosen}) for config in each]
    check_options(batch[0], known_options(""))
    for config in batch:
        if search := config.get("search"):
            # How a trial was found is no part of it.
            config["search"] = {"fidelity": search_config(search).fidelity}
            config.written["search"] = dict(config["search"])
    check_one_sweep(batch)
    return find_artifacts(batch, given)
