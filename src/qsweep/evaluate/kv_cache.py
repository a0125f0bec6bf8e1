"""Keys and values as a quantized cache gives them back, for one run of a dense model.

transformers calls the function that attends through ``ALL_ATTENTION_FUNCTIONS``, with keys and values
as they would be stored: normalised, after rotary embedding, one per key-value head. For the run that
function is another, which puts them through the cache's type first and then calls the model's own
(``sdpa``, ``eager`` or whichever it uses, by the same name, so that masks and all else that asks for
the name stay as they are). So every token attends to what a cache would hold of itself and of those
before it, as a runtime does that writes the cache first and attends after. Checked against
transformers' own forward, token by token, with a cache that stores the same
(tests/evaluate/test_kv_cache.py).

Not in it: queries, which some kernels quantize too (FlashAttention 3 with fp8, llama.cpp's on a CPU).
"""

import contextlib
import inspect
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import IncompatibleTrial
from qsweep.evaluate.cache_layers import cache_owners, keeps_keys, layer_kinds, require_cache
from qsweep.formats.kv_cache.rounding import Part, stored
from qsweep.formats.kv_cache.scales import Scales
from qsweep.formats.kv_cache.spec import KVCache
from qsweep.formats.kv_cache.types import KEYS_IN_PAIRS, NONE

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_PROBED_TOKENS = 4


class ServedCache:
    """What was seen while a model ran with a quantized cache.

    Attributes:
        layers: Numbers of the layers whose keys or values were quantized, of their own or another's.
    """

    def __init__(self, scaled: bool) -> None:
        self.layers: set[int] = set()
        self._scaled = scaled
        # Of types that have a largest number: how many were stored, and how many were beyond it.
        self._stored: Counter[tuple[int, Part]] = Counter()
        self._cut: dict[tuple[int, Part], Any] = {}

    def begin(self) -> None:
        """Forget what was seen."""
        self.layers.clear()
        self._stored.clear()
        self._cut.clear()

    def tally(self, layer: int, part: Part, numbers: int, cut: "Tensor") -> None:
        """So many numbers were stored; ``cut``, int64 [], were beyond their type's largest."""
        place = (layer, part)
        self._stored[place] += numbers
        self._cut[place] = self._cut.get(place, 0) + cut

    def facts(self) -> dict[str, Any]:
        """How many layers there were, and which share of numbers was beyond a type's largest.

        ``saturated_most`` is that of the keys or values that have the most, ``saturated_layer``;
        ``scales``: whether a checkpoint's own were taken.
        """
        found: dict[str, Any] = {"layers": len(self.layers)}
        if self._cut:
            cut = {place: int(count) for place, count in self._cut.items()}
            shares = {place: cut[place] / self._stored[place] for place in cut}
            layer, part = worst = max(shares, key=lambda place: shares[place])
            found["saturated"] = sum(cut.values()) / self._stored.total()
            found |= {
                "saturated_most": shares[worst],
                "saturated_layer": f"{part} of layer {layer}",
            }
            found["scales"] = self._scaled
        return found


@contextlib.contextmanager
def served_cache(
    model: "PreTrainedModel", cache: KVCache, scales: Scales | None = None
) -> Iterator[ServedCache]:
    """Put a dense model's keys and values through a cache's types while the context is open.

    Args:
        model: In evaluation mode, on its device.
        cache: What each layer stores.
        scales: A checkpoint's own, for fp8; 1 where there is none.

    Raises:
        IncompatibleTrial: See :func:`~qsweep.evaluate.cache_layers.require_cache`; or a layer that
            keeps keys and values attends in a way of its own, beside transformers' interface.
    """
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as FUNCTIONS

    config = model.config.get_text_config().to_dict()
    name = type(model).__name__
    require_cache(cache, config, name)
    owners = cache_owners(config)
    own = {id(module) for module in model.modules()}
    seen = ServedCache(bool(scales))

    pairs = config.get("model_type") in KEYS_IN_PAIRS

    def through(numbers: Any, kind: str, layer: int, part: Part) -> Any:
        if kind == NONE:
            return numbers
        scale = (scales or {}).get((layer, part), 1.0)
        back, cut = stored(numbers, kind, part, scale, pairs=pairs)
        if cut is not None:
            seen.tally(layer, part, numbers.numel(), cut)
        return back

    def instead_of(original: Any) -> Any:
        def with_cache(
            module: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any
        ) -> Any:
            attend = original or _eager(module)
            layer = getattr(module, "layer_idx", None)
            if id(module) not in own or layer is None:
                return attend(module, query, key, value, *rest, **more)
            owner = owners.get(layer, layer)
            if types := cache.of(owner):
                seen.layers.add(layer)
                key = through(key, types.keys, owner, "keys")
                value = through(value, types.values, owner, "values")
            return attend(module, query, key, value, *rest, **more)

        return with_cache

    with contextlib.ExitStack() as stack:
        for implementation in _implementations(model):
            function = instead_of(FUNCTIONS.get(implementation))
            stack.enter_context(_replaced(FUNCTIONS, implementation, function))
        with torch.inference_mode():
            ids = torch.zeros(1, _PROBED_TOKENS, dtype=torch.int64, device=model.device)
            model(input_ids=ids, use_cache=False)
        _require_all(seen.layers, cache, config, name)
        seen.begin()
        yield seen
        _require_all(seen.layers, cache, config, name)


def _require_all(ran: set[int], cache: KVCache, config: Mapping[str, Any], model: str) -> None:
    """Refuse a model of which some layer's cache was not quantized that should have been."""
    wanted = {
        layer
        for layer, kind in enumerate(layer_kinds(config))
        if keeps_keys(kind, config) and cache.of(layer)
    }
    wanted |= {layer for layer, owner in cache_owners(config).items() if cache.of(owner)}
    if missing := sorted(wanted - ran):
        which = (
            "none of its layers goes"
            if not ran
            else f"layers {', '.join(map(str, missing))} do not go"
        )
        raise IncompatibleTrial(
            f"kv_cache={cache}: {model} attends in a way of its own, {which} through transformers' "
            "attention interface, where keys and values could be quantized"
        )


def _implementations(model: Any) -> list[str]:
    configs = [getattr(module, "config", None) for module in model.modules()]
    found = {getattr(config, "_attn_implementation", None) for config in (model.config, *configs)}
    return sorted(name for name in found if isinstance(name, str))


def _eager(module: Any) -> Any:
    """The function by which a module attends that uses none of transformers' common ones.

    It has no entry in the table: each modeling file hands its own to whoever asks for ``eager``.
    """
    forward = inspect.unwrap(type(module).forward)
    return sys.modules[forward.__module__].eager_attention_forward  # type: ignore[attr-defined]


@contextlib.contextmanager
def _replaced(functions: Any, name: str, function: Any) -> Iterator[None]:
    # An entry of this table lies over the one that all tables share, and is taken away again.
    before = functions.get(name)
    functions[name] = function
    try:
        yield
    finally:
        del functions[name]
        if functions.get(name) is not before:
            functions[name] = before
