"""Which of a model's modules are the layers that a checkpoint names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qsweep.formats.activations import NotSimulated
from qsweep.models.experts import is_experts
from qsweep.models.facts import is_of_text
from qsweep.quantizers.native.graph import linears_of
from qsweep.quantizers.native.names import by_tail, tail

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
# A layer of one expert, or one that all experts of a layer are stacked in.
_EXPERT = re.compile(r"^(.+?\.\d+)\.(?:[^.]+\.)*?experts\.(?:(\d+)\.)?([^.]+)$")
# What the layers of an expert with a gate are called: all of them have to be there.
_WHOLE_EXPERTS = (
    {"gate_proj", "up_proj", "down_proj"},
    {"w1", "w2", "w3"},
    {"gate_up_proj", "down_proj"},
)


@dataclass(frozen=True)
class Placed:
    """A model's modules by the names that a checkpoint has for them.

    Attributes:
        linears: By the layer's name.
        experts: A module that holds all experts of a layer, with the names of all their layers.
    """

    linears: "dict[str, nn.Module]" = field(default_factory=dict)
    experts: "list[tuple[nn.Module, list[str]]]" = field(default_factory=list)


def place_layers(model: "PreTrainedModel", names: Iterable[str]) -> Placed:
    """The module of each layer.

    A prefix may differ from that in memory (``model.language_model.`` for
    ``language_model.model.``). Layers of what does not read text, and those that the architecture
    has no use for, are left out: they do not run.

    Raises:
        NotSimulated: A layer is no linear module, or it could be several; the line names it.
    """
    linears = linears_of(model)
    tails, experts = by_tail(linears), _experts_by_layer(model)
    unused: Mapping[str, Any] = getattr(model, "left_out", None) or {}
    placed, taken = Placed(), dict[str, str]()
    stacks: dict[str, list[str]] = {}
    for name in names:
        if not is_of_text(name):
            continue
        if (found := _best(name, linears, tails)) is not None:
            if found in taken:
                kind = type(model).__name__
                raise NotSimulated(f"{name} and {taken[found]} are both {found} in {kind}")
            taken[found] = name
            placed.linears[name] = linears[found]
        elif (match := _EXPERT.match(name)) and tail(match.group(1)) in experts:
            stacks.setdefault(tail(match.group(1)), []).append(name)
        elif f"{_NUMBER.sub('*', name)}.weight" not in unused:
            raise NotSimulated(_why(model, name))
    for layer, own in stacks.items():
        _require_all_experts(own)
        placed.experts.append((experts[layer], own))
    return placed


def _experts_by_layer(model: "PreTrainedModel") -> "dict[str, nn.Module]":
    # Where a layer has several such modules, names do not tell which is meant.
    found: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        if is_experts(module) and (match := re.match(r"^(.*\.\d+)\.", name)):
            found.setdefault(tail(match.group(1)), []).append(module)
    return {layer: modules[0] for layer, modules in found.items() if len(modules) == 1}


def _require_all_experts(names: list[str]) -> None:
    layers: dict[str, set[str]] = {}
    for name in names:
        if match := _EXPERT.match(name):
            layers.setdefault(match.group(2) or "", set()).add(match.group(3))
    kinds = list(layers.values())
    if any(kind != kinds[0] for kind in kinds) or kinds[0] not in _WHOLE_EXPERTS:
        raise NotSimulated(f"{names[0]}: of its layer's experts only a part has quantized inputs")


def _best(name: str, linears: Mapping[str, Any], tails: Mapping[str, list[str]]) -> str | None:
    """The linear module that has the name, or of those that end alike the one most alike."""
    if name in linears:
        return name
    words = set(name.split("."))
    ranked = sorted(
        ((len(words & set(other.split("."))), other) for other in tails.get(tail(name), ())),
        reverse=True,
    )
    if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
        return None
    return ranked[0][1] if ranked else None


def _why(model: "PreTrainedModel", name: str) -> str:
    kind = type(model).__name__
    module = dict(model.named_modules()).get(name)
    if module is not None:
        return f"{name} is a {type(module).__name__} in {kind}, whose inputs cannot be quantized"
    return f"{name} is no layer of its own in {kind}, so its inputs cannot be quantized"
