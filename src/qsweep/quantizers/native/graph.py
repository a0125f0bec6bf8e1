"""What a model's module graph says: where its decoder layers are, and the linear layers in them.

Nothing here knows an architecture by name. The decoder is the list of modules that holds the most
linear weights of the part that reads text; a linear layer is ``nn.Linear``, a subclass that computes
the same, transformers' ``Conv1D``, which stores its weight transposed, or a linear layer of an expert
(:mod:`qsweep.models.experts`).
"""

import weakref
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qsweep.base.errors import IncompatibleTrial
from qsweep.models.experts import ExpertLinear, holds_unknown_experts
from qsweep.models.room import stream_of
from qsweep.models.streaming import holding


@dataclass(frozen=True)
class Decoder:
    """The decoder layers of a model, in running order.

    ``paths`` are their places in the model, ``linears`` the linear layers of each by their names
    inside it, in the order of their definition.
    """

    paths: list[str]
    layers: list[nn.Module]
    linears: list[dict[str, nn.Module]]

    def full_name(self, index: int, linear: str) -> str:
        """The name in the whole model of a module of decoder layer ``index``."""
        return f"{self.paths[index]}.{linear}" if self.paths[index] else linear

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the model, which takes token ids, as one layer."""
        return len(self.layers) == 1 and not self.paths[0].rpartition(".")[2].isdecimal()


def find_decoder(model: nn.Module) -> Decoder:
    """Find the decoder layers of a causal language model.

    Raises:
        IncompatibleTrial: there are none, they hold no plain linear layers, a weight is quantized
            already, or experts lie in a way that is not understood.
    """
    stacks = dict(_stacks(model))
    if not stacks:
        raise IncompatibleTrial(
            f"{type(model).__name__}: no decoder layers with plain linear layers were found"
        )
    name = max(stacks, key=lambda item: (_linear_weights(stacks[item]), -len(item)))
    layers = list(stacks[name])
    decoder = Decoder(
        [f"{name}.{index}" for index in range(len(layers))],
        layers,
        [linears_of(layer) for layer in layers],
    )
    _refuse_what_cannot_be(decoder)
    return decoder


def whole_model(model: nn.Module) -> Decoder:
    """All of a model but its head as one layer, which takes token ids.

    It is what is left where decoder layers do not hand hidden states on one by one, share weights,
    or are not all of the model. Statistics of all its linear layers are held at a time.

    Raises:
        IncompatibleTrial: as :func:`find_decoder`.
    """
    body: Any = getattr(model, "base_model", model)
    path = next(name for name, module in model.named_modules() if module is body)
    decoder = Decoder([path], [body], [linears_of(body)])
    _refuse_what_cannot_be(decoder)
    return decoder


def shares_weights(decoder: Decoder) -> bool:
    """Whether some of its layers share a weight, or are the same."""
    every = [linear for linears in decoder.linears for linear in linears.values()]
    return len({_place(linear) for linear in every}) < len(every)


def linears_of(module: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer below a module, by name; of those that share a weight the first."""
    return {name: child for name, child, first in named_linears(module) if name == first}


def named_linears(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Every linear layer below a module by name, and the name of the first that has its weight."""
    seen: dict[tuple[int, int], str] = {}
    for name, child in module.named_modules():
        if is_linear(child):
            yield name, child, seen.setdefault(_place(child), name)


def _place(linear: nn.Module) -> tuple[int, int]:
    """Where a linear layer's weight lies, for telling those apart that share one."""
    weight = raw_weight(linear)
    if not weight.is_meta:
        return weight.data_ptr(), 0
    # On the meta device all weights are nowhere, and that of an expert is a view made just now.
    if isinstance(linear, ExpertLinear):
        return id(getattr(linear.stack, linear.part.parameter)), int(weight.storage_offset())
    return id(weight), 0


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a plain linear layer, whose weight can be replaced."""
    if type(module) in (nn.Linear, ExpertLinear) or is_transposed(module):
        return True
    if not isinstance(module, nn.Linear):
        return False
    if module not in _subclassed:
        if module.weight.is_meta:
            return False  # nobody can tell yet
        _subclassed[module] = _computes_a_product(module)
    return _subclassed[module]


def know_linears(model: nn.Module) -> None:
    """Find out of a streamed model's layers which modules are linear, where it takes their weights.

    Whether a class derived from ``nn.Linear`` computes the same shows when it runs.
    """
    stream = stream_of(model)
    for index, layer in enumerate(stream.layers if stream else ()):
        if any(isinstance(m, nn.Linear) and type(m) is not nn.Linear for m in layer.modules()):
            with holding(model, index):
                linears_of(layer)


def require_linear(layers: Collection[str], found: Collection[str]) -> None:
    """Refuse to quantize what a checkpoint calls a layer and the model does not run as one.

    Args:
        layers: What rules ask for beyond the usual.
        found: The linear layers of the model, as the checkpoint calls them.

    Raises:
        IncompatibleTrial: With the first of them.
    """
    odd = sorted(set(layers) - set(found))
    if odd:
        raise IncompatibleTrial(
            f"quant.rules: {odd[0]} is no linear layer that is called in the model, so that no codes "
            "can stand in for its weight; take it out"
        )


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is a ``Conv1D``, a linear layer that stores [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def raw_weight(module: nn.Module) -> torch.Tensor:
    """A module's own ``weight``, as it is stored: [out, in], of a ``Conv1D`` [in, out], of a norm [n]."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's own parameters by name; of an expert's layer its parts of the stacks."""
    if isinstance(module, ExpertLinear):
        bias = {} if module.bias is None else {"bias": module.bias}
        return {"weight": module.weight, **bias}
    return dict(module.named_parameters(recurse=False))


def weight_of(linear: nn.Module) -> torch.Tensor:
    """A linear layer's weight as float32 [out, in]: a copy."""
    weight = raw_weight(linear).detach()
    return (weight.T if is_transposed(linear) else weight).to(torch.float32, copy=True).contiguous()


def set_weight(linear: nn.Module, weight: torch.Tensor) -> None:
    """Put a weight [out, in] into a linear layer, in the layer's own dtype and order."""
    with torch.no_grad():
        raw_weight(linear).copy_(weight.T if is_transposed(linear) else weight)


# What was found of modules whose class is derived from nn.Linear.
_subclassed: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def _computes_a_product(module: nn.Linear) -> bool:
    # Falcon's own class does what nn.Linear does; a router returns more, a grouped one other shapes.
    weight, bias = module.weight, module.bias
    if weight.ndim != 2:
        return False
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, weight.shape[1], generator=generator).to(weight)
    with torch.no_grad():
        expected = nn.functional.linear(inputs, weight, bias)
        try:
            output = module.forward(inputs)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False
    if not isinstance(output, torch.Tensor) or output.shape != expected.shape:
        return False
    size = expected.float().abs().max()
    return bool((output.float() - expected.float()).abs().max() <= 1e-2 * size)


def _stacks(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of modules with linear layers; where a model reads more than text, of its text part."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and _linear_weights(module)
    ]
    get_decoder: Any = getattr(model, "get_decoder", None)
    part = get_decoder() if get_decoder else model
    inside = set(part.modules()) if isinstance(part, nn.Module) else set()
    yield from [pair for pair in found if pair[1] in inside] or found


def _linear_weights(module: nn.Module) -> int:
    return sum(raw_weight(linear).numel() for linear in linears_of(module).values())


def _refuse_what_cannot_be(decoder: Decoder) -> None:
    for index, layer in enumerate(decoder.layers):
        for name, module in layer.named_modules():
            full = decoder.full_name(index, name)
            if any(hasattr(module, part) for part in ("qweight", "weight_packed", "quant_state")):
                raise IncompatibleTrial(f"{full}: already quantized; give the unquantized model")
            if holds_unknown_experts(module):
                raise IncompatibleTrial(
                    f"{full}: {type(module).__name__} keeps experts in a way of its own; those are "
                    "quantized whose class has transformers' use_experts_implementation"
                )
