"""What a walk through a model is made of: chunks of text, decoder layers, stages of linear layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from qsweep.base.scratch import on_disk
from qsweep.quantizers.native.graph import weight_of


@dataclass(frozen=True)
class Chunk:
    """Samples of equal length that run together, and how the decoder layers are called for them.

    Attributes:
        hidden: Hidden states [samples, tokens, width]; of a model that is one layer token ids
            [samples, tokens].
        calls: Positional and keyword arguments of each layer, without the hidden states.
        exact: Whether the layers cannot multiply in bfloat16 what is in another precision.
        on_disk: Whether its hidden states rest in a file (:func:`~qsweep.base.scratch.on_disk`).
    """

    hidden: torch.Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    exact: bool = False
    on_disk: bool = False

    @property
    def tokens(self) -> int:
        """How many tokens it holds."""
        return self.hidden.shape[0] * self.hidden.shape[1]

    def with_hidden(self, hidden: torch.Tensor) -> "Chunk":
        """The same with other hidden states, which go to where its own rest."""
        hidden = on_disk(hidden) if self.on_disk else hidden.to(self.hidden.device)
        return replace(self, hidden=hidden)


@dataclass(frozen=True)
class Stage:
    """Linear layers of one decoder layer that are given the very same tensor, in running order.

    Attributes:
        linears: Their names inside the decoder layer.
        channels: How wide the tensor is.
        block: Stages of the same number run side by side: experts, each on tokens of its own.
        experts: The module of experts that they belong to; empty for other layers.
        repeats: Whether they run several times, each time on another tensor.
    """

    linears: tuple[str, ...]
    channels: int
    block: int
    experts: str = ""
    repeats: bool = False


@dataclass(frozen=True)
class Inputs:
    """What goes into linear layers.

    Attributes:
        values: [..., channels].
        tokens: Of an expert, the numbers in the text of those that are sent to it, int64 [tokens];
            None where all are.
        weights: What an expert's outputs are multiplied by for each of them [tokens]; None: by 1.
        expert: The expert's name; empty for other layers.
        routed: How many tokens are sent to the expert, also where it is shown all; None of others.
    """

    values: torch.Tensor
    tokens: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    expert: str = ""
    routed: int | None = None

    def to(self, device: torch.device) -> "Inputs":
        """The same with its values on another device, of which no gradients are kept."""
        return replace(self, values=self.values.detach().to(device))

    def beside(self, other: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
        """For each of these inputs what it is in ``other``, inputs of the same layer.

        An expert may be sent other ``tokens`` there: one that is missing counts as unchanged.
        """
        if self.tokens is None or tokens is None:
            return other
        own, others = self.tokens.to(other.device), tokens.to(other.device)
        found = self.values.detach().to(other, copy=True)
        place = torch.searchsorted(others, own).clamp(max=max(len(others) - 1, 0))
        if len(others):
            shared = others[place] == own
            found[shared] = other[place[shared]]
        return found


@dataclass(frozen=True)
class Layer:
    """The decoder layer at hand.

    Attributes:
        module: The layer.
        stages: Its stages, in running order.
        full_name: Gives the name in the model of one of its parts.
        weights: By linear layer, what its weight is before the module's dtype rounds it, float32
            [out, in]; only where that differs.
    """

    module: nn.Module
    stages: Sequence[Stage]
    full_name: Callable[[str], str]
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def weight_of(self, name: str) -> torch.Tensor:
        """The weight of one of its linear layers, float32 [out, in]: a copy."""
        if name in self.weights:
            return self.weights[name].clone()
        linear = self.module.get_submodule(name)
        return weight_of(linear)


# By a stage's first linear layer, what goes into it of each chunk.
StageInputs = dict[str, list[Inputs]]


def blocks_of(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Stages that run side by side, in running order."""
    found: dict[int, list[Stage]] = {}
    for stage in stages:
        found.setdefault(stage.block, []).append(stage)
    return list(found.values())


def run_layer(layer: nn.Module, chunk: Chunk, index: int) -> torch.Tensor:
    """The hidden states [samples, tokens, width] that a decoder layer makes of a chunk's."""
    parameter = next(layer.parameters())
    hidden = chunk.hidden.to(parameter.device, non_blocking=True)
    with torch.no_grad():
        return call_layer(layer, hidden, chunk, index)


def call_layer(layer: nn.Module, hidden: torch.Tensor, chunk: Chunk, index: int) -> torch.Tensor:
    """The same of hidden states that lie where the layer does, with gradients where they are on."""
    arguments, named = chunk.calls[index]
    result = layer(hidden, *arguments, **named)
    output: torch.Tensor = result if isinstance(result, torch.Tensor) else result[0]
    return output
