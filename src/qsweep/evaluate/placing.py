"""Which of a model's modules are the layers that a checkpoint names."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qsweep.formats.activations import NotSimulated
from qsweep.models.experts import attached
from qsweep.models.facts import is_of_text
from qsweep.quantizers.native.graph import linears_of
from qsweep.quantizers.native.names import by_tail, tail

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
# A layer of one expert, or one that all experts of a layer are stacked in.
_EXPERT = re.compile(r"^(.+?\.\d+)\.(?:[^.]+\.)*?experts\.(?:(\d+)\.)?([^.]+)$")
# What an expert's layers are called beside their names here.
_CALLED: dict[str, tuple[str, ...]] = {
    **{"w1": ("gate_proj",), "w3": ("up_proj",), "w2": ("down_proj",)},
    "gate_up_proj": ("gate_proj", "up_proj"),
}


def place_layers(model: "PreTrainedModel", names: Iterable[str]) -> "dict[str, list[nn.Module]]":
    """The modules of each layer: one, or of experts that are stacked each one's.

    A prefix may differ from that in memory (``model.language_model.`` for
    ``language_model.model.``). Layers of what does not read text, and those that the architecture
    has no use for, are left out: they do not run.

    Args:
        model: The model, with experts attached (:func:`~qsweep.models.experts.attach_experts`).
        names: The layers', as a checkpoint has them.

    Raises:
        NotSimulated: A layer is no linear module, or it could be several; the line names it.
    """
    linears = linears_of(model)
    tails, experts = by_tail(linears), _experts_by_layer(model)
    unused: Mapping[str, Any] = getattr(model, "left_out", None) or {}
    placed: dict[str, list[nn.Module]] = {}
    taken: dict[str, str] = {}
    for name in names:
        if not is_of_text(name):
            continue
        found = (
            [best] if (best := _best(name, linears, tails)) else _of_experts(name, experts, linears)
        )
        for module in found:
            if module in taken:
                kind = type(model).__name__
                raise NotSimulated(f"{name} and {taken[module]} are both {module} in {kind}")
            taken[module] = name
            placed.setdefault(name, []).append(linears[module])
        if not found and f"{_NUMBER.sub('*', name)}.weight" not in unused:
            raise NotSimulated(_why(model, name))
    return placed


def _experts_by_layer(model: "PreTrainedModel") -> dict[str, str]:
    # Where a layer has several such modules, names do not tell which is meant.
    found: dict[str, list[str]] = {}
    for name, _ in attached(model):
        if match := re.match(r"^(.*\.\d+)\.", name):
            found.setdefault(tail(match.group(1)), []).append(name)
    return {layer: names[0] for layer, names in found.items() if len(names) == 1}


def _of_experts(name: str, experts: Mapping[str, str], linears: Mapping[str, Any]) -> list[str]:
    """The linear layers of experts that a name means, by what families call them."""
    match = _EXPERT.match(name)
    if match is None or (holder := experts.get(tail(match.group(1)))) is None:
        return []
    number, called = match.group(2), match.group(3)
    kinds = _CALLED.get(called, (called,))
    pattern = re.compile(
        rf"{re.escape(holder)}\.{number or '[0-9]+'}\.({'|'.join(map(re.escape, kinds))})"
    )
    return [linear for linear in linears if pattern.fullmatch(linear)]


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
