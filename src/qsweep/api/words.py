"""Options of Python as a command line has them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.sweep.blends import GROUP as BLENDED
from qsweep.sweep.overrides import spelled


def as_overrides(given: Mapping[str, Any]) -> Iterator[str]:
    """Overrides, one for each option; a list's values are swept.

    >>> list(as_overrides({"quant": ["gptq", "awq"], "corpus": ("a", "b"), "bits": 4}))
    ['quant=gptq,awq', 'corpus=[a,b]', 'bits=4']

    Raises:
        ConfigError: an option has no value, or one of a kind that no option has.
    """
    for name, value in given.items():
        if name.partition("/")[0].partition(".")[0].lstrip("+~") == "hydra":
            raise ConfigError(f"{name}: is Hydra's, which has no part in this")
        swept = isinstance(value, list) and name != "seeds"  # a list of those is one value
        values: Sequence[Any] = value if swept else [value]
        if not values:
            raise ConfigError(f"{name}=[]: no value; several to sweep are a list, as in [3, 4]")
        yield f"{name}={','.join(spelled(_blend(name, _plain(one)), name) for one in values)}"


def _blend(name: str, value: Any) -> Any:
    """Texts to calibrate on by their shares, as the list that a command line has."""
    if name != BLENDED or not isinstance(value, Mapping):
        return value
    return tuple(f"{text}:{_plain(share)!r}" for text, share in value.items())


def _plain(value: Any) -> Any:
    """Paths as text, and numpy's numbers as Python's."""
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") and not isinstance(value, type) else value
