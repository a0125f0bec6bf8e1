"""``kv_cache=``: what each layer's keys and values are stored as, as people write it. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.base.schema import nearest
from qsweep.formats.kv_cache.types import NONE, QUANTIZED

_OPTION = "kv_cache"
_HOW = "a type, KEYS/VALUES, or {default: TYPE, LAYER: TYPE}"


@dataclass(frozen=True)
class LayerCache:
    """What one layer stores: names of :data:`~qsweep.formats.kv_cache.types.QUANTIZED`, or ``none``."""

    keys: str = NONE
    values: str = NONE

    def __bool__(self) -> bool:
        return (self.keys, self.values) != (NONE, NONE)

    def __str__(self) -> str:
        return self.keys if self.keys == self.values else f"{self.keys}/{self.values}"


@dataclass(frozen=True)
class KVCache:
    """What all layers store. False where nothing is quantized.

    Attributes:
        default: Of layers that are not named.
        layers: Those that differ from it, by number from 0, in their order.
    """

    default: LayerCache = LayerCache()
    layers: tuple[tuple[int, LayerCache], ...] = ()

    def of(self, layer: int) -> LayerCache:
        """What one layer stores."""
        return dict(self.layers).get(layer, self.default)

    @property
    def kinds(self) -> tuple[LayerCache, ...]:
        """What there is in it, each once."""
        return tuple(dict.fromkeys((self.default, *(one for _, one in self.layers))))

    @property
    def in_llama_cpp(self) -> LayerCache | None:
        """It as llama.cpp's own ``type_k`` and ``type_v``; None where it has no such types."""
        names = {NONE, *(name for name, kind in QUANTIZED.items() if kind.rotated)}
        known = {self.default.keys, self.default.values} <= names
        return self.default if known and not self.layers else None

    def __bool__(self) -> bool:
        return any(self.kinds)

    def __str__(self) -> str:
        """The one spelling of it, which :func:`kv_cache` and a command line take."""
        if not self.layers:
            return str(self.default)
        named = [("default", self.default), *self.layers]
        return "{" + ", ".join(f"{name}: {one}" for name, one in named) + "}"


def kv_cache(value: Any) -> KVCache:
    """What an option's value means.

    >>> str(kv_cache("q8_0/q8_0")), str(kv_cache({"default": "q4_0", 0: "none", 3: "q4_0"}))
    ('q8_0', '{default: q4_0, 0: none}')

    Args:
        value: A name, two (``q8_0/q4_0``: keys, values), or a mapping of ``default`` and numbers of
            layers to those; None is ``none``. The text of a mapping will do as well.

    Raises:
        ConfigError: It names no type, or no layer.
    """
    if isinstance(value, str) and (inner := re.fullmatch(r"\{(.*)\}", value.strip(), re.DOTALL)):
        parts = [part.partition(":") for part in inner[1].split(",") if part.strip()]
        value = {name.strip(): named.strip() for name, _, named in parts}
    if not isinstance(value, Mapping):
        return KVCache(_layer_cache(value, _OPTION))
    default, layers = LayerCache(), {}
    for name, named in value.items():
        found = _layer_cache(named, f"{_OPTION}.{name}")
        if str(name) == "default":
            default = found
        else:
            layers[_layer(name)] = found
    kept = ((number, one) for number, one in sorted(layers.items()) if one != default)
    return KVCache(default, tuple(kept))


def _layer(name: Any) -> int:
    if re.fullmatch(r"\d+", str(name)):
        return int(name)
    raise ConfigError(
        f"{_OPTION}.{name}: neither default nor the number of a layer, from 0; write {_HOW}"
    )


def _layer_cache(value: Any, where: str) -> LayerCache:
    if value is None:
        return LayerCache()
    keys, slash, values = str(value).partition("/")
    for name in (keys, values) if slash else (keys,):
        if name not in (NONE, *QUANTIZED):
            raise ConfigError(
                f"{where}={value}: no type {name!r}; write {_HOW}"
                f"{nearest(name, (NONE, *QUANTIZED))}"
            )
    return LayerCache(keys, values if slash else keys)
