"""Experts that an artifact holds one by one, put back into the stacks that their checkpoint has.

Where a checkpoint stores experts one by one, transformers stacks them while it loads. Where it stores
stacks, a quantized one has them one by one all the same, since each matrix has its own codes.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.formats.weights import LazyWeight
from qsweep.models.facts import read_outline

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def restacked(state: Mapping[str, Any], shell: "PreTrainedModel", source: Path) -> dict[str, Any]:
    """The tensors of an artifact with its experts stacked, lazily, where the model's own are.

    Args:
        state: Dense tensors by name, or what gives one when it is indexed.
        shell: The model on the meta device.
        source: The directory of the unquantized model.
    """
    from qsweep.models.experts import attach_experts, attached, expert_count, parts_of
    from qsweep.models.spelling import spelling_of

    found = dict(state)
    attach_experts(shell)
    stacks = dict(attached(shell))
    if not stacks:
        return found
    spelling = spelling_of(shell, read_outline(source))
    for name, module in stacks.items():
        for parameter in dict.fromkeys(part.parameter for part in parts_of(module)):
            parts = [part for part in parts_of(module) if part.parameter == parameter]
            for kind, target in (("weight", parameter), ("bias", f"{parameter}_bias")):
                places = [
                    (part, expert, f"{spelling.layer(f'{name}.{expert}.{part.name}')}.{kind}")
                    for part in parts
                    for expert in range(expert_count(module))
                ]
                whole = getattr(module, target, None)
                if whole is None or f"{name}.{target}" in spelling.merged:
                    continue
                if all(stored in found for _, _, stored in places):
                    pieces = [(part, n, found.pop(stored)) for part, n, stored in places]
                    make = partial(_stack, whole, pieces, kind)
                    found[f"{name}.{target}"] = LazyWeight(make)
    return found


def _stack(whole: "torch.Tensor", pieces: list[Any], kind: str) -> "torch.Tensor":
    import torch

    stack: torch.Tensor | None = None
    for part, expert, piece in pieces:
        value = piece[...]
        if stack is None:
            stack = torch.zeros(whole.shape, dtype=value.dtype, device=value.device)
        into = part.of(stack, expert) if kind == "weight" else part.rows(stack[expert])
        into.copy_(value)
    assert stack is not None
    return stack
