"""The decoder layers of a model, and whether they can be held one at a time."""

from typing import Any

from torch import nn

from qsweep.base.errors import IncompatibleTrial
from qsweep.models.facts import is_of_text

_WAY_OUT = "leave model.stream out"


class CannotStream(IncompatibleTrial):
    """The model's layers cannot be held one at a time."""


def layers_of(model: Any) -> tuple[list[str], list[nn.Module]]:
    """The decoder layers of a model: the list of modules that has most of its parameters.

    Raises:
        CannotStream: There is none.
    """
    get_decoder = getattr(model, "get_decoder", None)
    part = get_decoder() if get_decoder else model
    inside = set(part.modules()) if isinstance(part, nn.Module) else set()
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and is_of_text(name) and len(module)
    ]
    lists = [pair for pair in lists if pair[1] in inside] or lists
    if not lists:
        raise CannotStream(
            f"model.stream=true: {type(model).__name__} has no list of decoder layers; {_WAY_OUT}"
        )
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in lists}
    name, found = max(lists, key=lambda pair: (sizes[pair[0]], -len(pair[0])))
    return [f"{name}.{index}" for index in range(len(found))], list(found)


def require_streamable(model: Any) -> None:
    """Refuse a model, which may be on the meta device, whose layers cannot come one at a time.

    Raises:
        CannotStream: says why.
    """
    paths, layers = layers_of(model)
    kind = type(model).__name__
    prefix = paths[0].rpartition(".")[0] + "."
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    shared = [name for pair in tied.items() for name in pair if name.startswith(prefix)]
    if shared:
        raise CannotStream(
            f"model.stream=true: layers of {kind} share weights ({min(shared)}); {_WAY_OUT}"
        )
    # Where a model lies transformers tells by its first parameter.
    first, _ = next(model.named_parameters())
    if first.startswith(prefix):
        raise CannotStream(
            f"model.stream=true: {kind} begins with its layers ({first}), by which transformers tells "
            f"its device; {_WAY_OUT}"
        )
    parameters = [id(p) for layer in layers for p in layer.parameters()]
    if len(set(map(id, layers))) < len(layers) or len(set(parameters)) < len(parameters):
        raise CannotStream(f"model.stream=true: layers of {kind} share weights; {_WAY_OUT}")
