"""Which of a model's modules are the layers that a checkpoint names."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qsweep.formats.activations import NotSimulated
from qsweep.models.facts import is_of_text
from qsweep.quantizers.native.graph import linears_of
from qsweep.quantizers.native.names import by_tail, tail

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def place_layers(model: "PreTrainedModel", names: Iterable[str]) -> "dict[str, nn.Module]":
    """The linear module of each layer, by the name that a checkpoint has for it.

    A prefix may differ from that in memory (``model.language_model.`` for
    ``language_model.model.``). Layers of what does not read text, and those that the architecture
    has no use for, are left out: they do not run.

    Raises:
        NotSimulated: A layer is no linear module, or it could be several; the line names it.
    """
    linears = linears_of(model)
    tails = by_tail(linears)
    unused: Mapping[str, Any] = getattr(model, "left_out", None) or {}
    placed: dict[str, nn.Module] = {}
    taken: dict[str, str] = {}
    for name in names:
        if not is_of_text(name):
            continue
        if (found := _best(name, linears, tails)) is None:
            if f"{_NUMBER.sub('*', name)}.weight" in unused:
                continue
            raise NotSimulated(_why(model, name))
        if found in taken:
            raise NotSimulated(
                f"{name} and {taken[found]} are both {found} in {type(model).__name__}"
            )
        taken[found] = name
        placed[name] = linears[found]
    return placed


def _best(name: str, linears: Mapping[str, Any], tails: Mapping[str, list[str]]) -> str | None:
    if name in linears:
        return name
    alike = tails.get(tail(name), [])
    words = set(name.split("."))
    by_words = sorted(alike, key=lambda other: len(words & set(other.split("."))), reverse=True)
    if len(by_words) > 1:
        first, second = (len(words & set(other.split("."))) for other in by_words[:2])
        return by_words[0] if first > second else None
    return by_words[0] if by_words else None


def _why(model: "PreTrainedModel", name: str) -> str:
    kind = type(model).__name__
    module = dict(model.named_modules()).get(name)
    if module is not None:
        return f"{name} is a {type(module).__name__} in {kind}, whose inputs cannot be quantized"
    return f"{name} is no layer of its own in {kind}, so its inputs cannot be quantized"
