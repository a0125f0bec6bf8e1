"""What a model's module graph says: where its decoder layers are, and the linear layers in them.

Nothing here knows an architecture by name. The decoder is the list of modules that holds the most
linear weights; a linear layer is ``nn.Linear``, or transformers' ``Conv1D``, which stores its
weight transposed.
"""

from dataclasses import dataclass

import torch
from torch import nn

from qsweep.errors import IncompatibleTrial


@dataclass(frozen=True)
class Decoder:
    """The stack of decoder layers of a model.

    ``name`` is its path in the model, ``linears`` the linear layers of each decoder layer by their
    names inside it, in the order of their definition.
    """

    name: str
    layers: nn.ModuleList
    linears: list[dict[str, nn.Module]]

    def full_name(self, index: int, linear: str) -> str:
        """The name in the whole model of a module of decoder layer ``index``."""
        return f"{self.name}.{index}.{linear}"


def find_decoder(model: nn.Module) -> Decoder:
    """Find the decoder layers of a causal language model.

    Raises:
        IncompatibleTrial: there are none, they hold no plain linear layers, two of these share one
            weight, or a weight is quantized already or belongs to a mixture of experts.
    """
    stacks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and _linear_weights(module)
    }
    if not stacks:
        raise IncompatibleTrial(
            f"{type(model).__name__}: no decoder layers with plain linear layers were found; "
            "quant.backend=gptqmodel may know this architecture"
        )
    name = max(stacks, key=lambda item: (_linear_weights(stacks[item]), -len(item)))
    decoder = Decoder(name, stacks[name], [linears_of(layer) for layer in stacks[name]])
    _refuse_what_cannot_be(decoder)
    return decoder


def linears_of(module: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer below a module, by name."""
    return {name: child for name, child in module.named_modules() if is_linear(child)}


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a plain linear layer, whose weight can be replaced."""
    return type(module) is nn.Linear or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is a ``Conv1D``, a linear layer that stores [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def raw_weight(module: nn.Module) -> torch.Tensor:
    """A module's own ``weight``, in the order in which it is stored."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def weight_of(linear: nn.Module) -> torch.Tensor:
    """A linear layer's weight as float32 [out, in]: a copy."""
    weight = raw_weight(linear).detach()
    return (weight.T if is_transposed(linear) else weight).to(torch.float32, copy=True).contiguous()


def set_weight(linear: nn.Module, weight: torch.Tensor) -> None:
    """Put a weight [out, in] into a linear layer, in the layer's own dtype and order."""
    with torch.no_grad():
        raw_weight(linear).copy_(weight.T if is_transposed(linear) else weight)


def _linear_weights(module: nn.Module) -> int:
    return sum(raw_weight(linear).numel() for linear in linears_of(module).values())


def _refuse_what_cannot_be(decoder: Decoder) -> None:
    seen: dict[int, str] = {}
    for index, layer in enumerate(decoder.layers):
        for name, module in layer.named_modules():
            full = decoder.full_name(index, name)
            if any(hasattr(module, part) for part in ("qweight", "weight_packed", "quant_state")):
                raise IncompatibleTrial(f"{full}: already quantized; give the unquantized model")
            for key, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    raise IncompatibleTrial(
                        f"{full}.{key}: the native backend does not quantize mixtures of experts; "
                        "use quant.backend=gptqmodel"
                    )
            if not is_linear(module):
                continue
            pointer = raw_weight(module).data_ptr()
            if pointer in seen:
                raise IncompatibleTrial(
                    f"{full}: shares its weight with {seen[pointer]}; the native backend "
                    "quantizes each layer for its own inputs"
                )
            seen[pointer] = full
