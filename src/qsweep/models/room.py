"""Whether a model fits into memory whole, or its layers are held one at a time. Imports no torch."""

import re
from collections import Counter
from typing import Any, Literal

from qsweep.base.memory import available_bytes
from qsweep.models.source import ModelFacts

Stream = bool | Literal["auto"]

# Share of the free memory that weights may take; what else is computed needs some.
_SHARE = 0.8
_LAYER = re.compile(r"^.*?\.\d+(?=\.)")


def streams(choice: Stream, needed: int, device: str = "cpu", free: int | None = None) -> bool:
    """Whether to read a model layer by layer.

    Args:
        choice: ``model.stream``; with ``auto`` where it does not fit.
        needed: Bytes that it takes whole, with what is computed beside it.
        device: Where it would lie.
        free: Bytes that are free there, by default those that are now.
    """
    if isinstance(choice, bool):
        return choice
    return needed > _SHARE * (free_bytes(device) if free is None else free)


def free_bytes(device: str) -> int:
    """Free memory of a device, ``cpu`` or ``cuda:N``."""
    if device == "cpu":
        return available_bytes()
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def held_parameters(facts: ModelFacts) -> int:
    """How many of a model's parameters are in memory at a time where its layers are read one by one.

    All that are in no layer, the largest layer's, and of the one behind it, which is read meanwhile.
    """
    layers: Counter[str] = Counter()
    for name, (outputs, inputs) in facts.all_linears.items():
        if match := _LAYER.match(name):
            layers[match.group()] += outputs * inputs
    outside = facts.parameters - sum(layers.values())
    return min(outside + 2 * max(layers.values(), default=0), facts.parameters)


def stream_of(model: Any) -> Any:
    """The :class:`~qsweep.models.streaming.LayerStream` of a model; None of one that is there whole."""
    return getattr(model, "layer_stream", None)
