"""What ``seeds`` says: which seeds it asks for, and a configuration with each of them."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from qsweep.base.contents import is_number
from qsweep.base.errors import ConfigError

_MOST = 1000
"""As many draws may be asked for: whoever types more of them mistook it for ``seed``."""


def seeds_of(asked: Any, first: Any = 0) -> list[int]:
    """The seeds that ``seeds`` asks for: so many from the first one on, or those of a list.

    >>> seeds_of(3, 1), seeds_of([0, 3, 7]), seeds_of(None)
    ([1, 2, 3], [0, 3, 7], [])

    Raises:
        ConfigError: It is neither, names a seed twice, or has one below 0: Python's generator draws by
            a seed's magnitude, so that two of them would be one draw that counts as two.
    """
    found = [] if asked is None else _asked_for(asked, first)
    if below := next((seed for seed in found if seed < 0), None):
        raise ConfigError(f"seeds: {below} draws what {-below} does; give seeds from 0 on")
    return found


def _asked_for(asked: Any, first: Any) -> list[int]:
    if isinstance(asked, (list, tuple)) and asked and all(map(_is_whole, asked)):
        twice = next((seed for seed in asked if list(asked).count(seed) > 1), None)
        if twice is not None:
            raise ConfigError(f"seeds={list(asked)}: {twice} is there twice; name each seed once")
        return list(asked)
    if not _is_whole(asked) or asked < 1:
        raise ConfigError(
            f"seeds={asked}: a number of draws from 1, or a list of seeds, as in seeds=[0,3,7]"
        )
    if asked > _MOST:
        raise ConfigError(
            f"seeds={asked}: {_MOST} draws are the most; seed={asked} is one draw, of that seed"
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


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and is_number(value)
