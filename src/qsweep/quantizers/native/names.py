"""Modules' names in memory, and the names that a checkpoint has."""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def by_checkpoint_name(
    found: "Mapping[str, torch.Tensor]", names: Collection[str]
) -> "dict[str, torch.Tensor]":
    """What was ``found`` by the modules' names, under the ``names`` that the checkpoint has.

    In memory a prefix may differ (``model.language_model.`` for ``language_model.model.``), so what
    follows the word before the layer's number decides where the whole name does not. A name that
    could be several modules', or a module's that could have several, is left out.
    """
    modules, spelt = by_tail(found), by_tail(names)
    renamed = {}
    for name in names:
        alike = modules.get(tail(name), [])
        if name in found:
            renamed[name] = found[name]
        elif len(alike) == len(spelt[tail(name)]) == 1:
            renamed[name] = found[alike[0]]
    return renamed


def by_tail(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by their part from the layer's number on."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(tail(name), []).append(name)
    return found


def tail(name: str) -> str:
    """The word before a layer's number, and what follows."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(parts[max(number - 1, 0) :])


def layer_of(name: str) -> str:
    """What a module belongs to: the path down to its layer's number.

    >>> layer_of("model.layers.3.mlp.experts.7.up_proj")
    'model.layers.3'
    """
    parts = name.split(".")
    number = next((n for n, part in enumerate(parts) if part.isdecimal()), len(parts) - 1)
    return ".".join(parts[: number + 1])
