"""Configurations that ask for several draws, as one for each draw."""

from collections.abc import Collection, Sequence

from qsweep.base.contents import is_number
from qsweep.base.errors import ConfigError
from qsweep.sweep.compose import Composed

# What follows `seed` unless somebody sets it.
_DRAWN = ("calibration.seed", "quant.seed")


def drawn(configs: Sequence[Composed], typed: Collection[str] = ()) -> list[Composed]:
    """Configurations, in place of each that asks for several draws one for each of them.

    Args:
        configs: As they were composed.
        typed: Names of the options that the command line gives to all of them.

    Raises:
        ConfigError: ``seeds`` and something beside it both say what is drawn, or draws would be read
            to different ends.
    """
    asking = [config for config in configs if config.draws]
    for config in asking:
        chosen = {*typed, *config.chosen}
        if beside := [name for name in _DRAWN if name in chosen]:
            raise ConfigError(f"{beside[0]}: seeds says what is drawn; leave one of the two out")
        if "seed" in chosen and not is_number(config["seeds"]):
            raise ConfigError("seed: seeds is a list of all of them; leave one of the two out")
        if len(config.draws) > 1 and config["eval"].get("until") is not None:
            raise ConfigError(
                "eval.until: draws would stop at different windows, and seeds compares them on the "
                "same; leave one of the two out"
            )
    if len({config["seed"] for config in asking}) > 1:
        raise ConfigError("seed: is varied, and seeds draws several of each; leave one of them out")
    found: list[Composed] = []
    for config in configs:
        for draw in config.draws:
            draw.chosen, draw.words = config.chosen, config.words
        found += config.draws or (config,)
    return found
