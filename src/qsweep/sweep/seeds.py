"""``seeds``: a configuration as several that differ in nothing but what is drawn."""

import copy
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from qsweep.base.contents import is_number
from qsweep.base.errors import ConfigError

if TYPE_CHECKING:
    from qsweep.sweep.compose import Composed

_DRAWN = ("calibration.seed", "quant.seed")
"""What follows ``seed`` unless somebody sets it."""


def seeds_of(asked: Any, first: Any = 0) -> list[int]:
    """The seeds that ``seeds`` asks for: so many from the first one on, or those of a list.

    >>> seeds_of(3, 1), seeds_of([0, 3, 7]), seeds_of(None)
    ([1, 2, 3], [0, 3, 7], [])

    Raises:
        ConfigError: It is neither, or names a seed twice.
    """
    if asked is None:
        return []
    if isinstance(asked, (list, tuple)) and asked and all(map(_is_whole, asked)):
        twice = next((seed for seed in asked if list(asked).count(seed) > 1), None)
        if twice is not None:
            raise ConfigError(f"seeds={list(asked)}: {twice} is there twice; name each seed once")
        return list(asked)
    if not _is_whole(asked) or asked < 1:
        raise ConfigError(
            f"seeds={asked}: a number of draws from 1, or a list of seeds, as in seeds=[0,3,7]"
        )
    if not _is_whole(first):
        raise ConfigError(f"seed={first}: a whole number")
    return list(range(first, first + asked))


def with_seeds(config: Any, seeds: Sequence[int]) -> Iterator[Any]:
    """Copies of a configuration of OmegaConf's, one for each seed; what interpolates it follows."""
    from omegaconf import OmegaConf

    for seed in seeds:
        own = copy.deepcopy(config)
        OmegaConf.set_readonly(own, False)
        own.seed, own.seeds = seed, list(seeds)
        yield own


def drawn(configs: Sequence["Composed"], typed: Collection[str] = ()) -> "list[Composed]":
    """Configurations, in place of each that asks for several draws one for each of them.

    Args:
        configs: As they were composed.
        typed: Names of the options that the command line gives to all of them.

    Raises:
        ConfigError: ``seeds`` and something beside it both say what is drawn.
    """
    asking = [config for config in configs if config.draws]
    for config in asking:
        chosen = {*typed, *config.chosen}
        if beside := [name for name in _DRAWN if name in chosen]:
            raise ConfigError(f"{beside[0]}: seeds says what is drawn; leave one of the two out")
        if "seed" in chosen and not is_number(config["seeds"]):
            raise ConfigError("seed: seeds is a list of all of them; leave one of the two out")
    if len({config["seed"] for config in asking}) > 1:
        raise ConfigError("seed: is varied, and seeds draws several of each; leave one of them out")
    found = []
    for config in configs:
        for draw in config.draws:
            draw.chosen, draw.words = config.chosen, config.words
        found += config.draws or (config,)
    return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and is_number(value)
