"""Experts that an artifact holds one by one, put back into the stacks that their checkpoint has.

Where a checkpoint stores experts one by one, transformers stacks them while it loads. Where it stores
stacks, a quantized one has them one by one all the same, since each matrix has its own codes.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.files import read_json
from qsweep.formats.weights import LazyWeight
from qsweep.models.facts import read_outline

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def restacked(
    state: Mapping[str, Any], shell: "PreTrainedModel", source: Path, files: Path | None = None
) -> dict[str, Any]:
    """The tensors of an artifact with its experts stacked, lazily, where the model's own are.

    Experts are found by the checkpoint's names, and by those that transformers has in memory, which
    GPTQModel writes.

    Args:
        state: Dense tensors by name, or what gives one when it is indexed.
        shell: The model on the meta device.
        source: The directory of the unquantized model.
        files: That of the artifact, whose settings may say who made it.
    """
    from qsweep.models.experts import attach_experts, attached, expert_count, parts_of
    from qsweep.models.spelling import spelling_of

    found = dict(state)
    attach_experts(shell)
    stacks = dict(attached(shell))
    if not stacks:
        return found
    spelling = spelling_of(shell, read_outline(source))
    halves = splits_in_halves(files)
    for name, module in stacks.items():
        for parameter in dict.fromkeys(part.parameter for part in parts_of(module)):
            parts = [part for part in parts_of(module) if part.parameter == parameter]
            if halves:
                parts = [replace(part, interleaved=False) for part in parts]
            for kind, target in (("weight", parameter), ("bias", f"{parameter}_bias")):
                whole = getattr(module, target, None)
                if whole is None:
                    continue
                places = [(part, n) for part in parts for n in range(expert_count(module))]
                own = [f"{name}.{expert}.{part.name}" for part, expert in places]
                spelt = [spelling.layer(layer) for layer in own]
                merged = f"{name}.{target}" in spelling.merged
                if merged and own == spelt:
                    continue  # transformers stacks these by itself
                taken = _taken(found, own, kind)
                if taken is None and not merged:
                    taken = _taken(found, spelt, kind)
                if taken is not None:
                    pieces = [(*place, value) for place, value in zip(places, taken, strict=True)]
                    make = partial(_stack, whole, pieces, kind)
                    found[f"{name}.{target}"] = LazyWeight(make)
    return found


def _taken(found: dict[str, Any], layers: Sequence[str], kind: str) -> list[Any] | None:
    """The layers' tensors, out of what was found, if all of them are there."""
    names = [f"{layer}.{kind}" for layer in layers]
    return [found.pop(name) for name in names] if all(name in found for name in names) else None


def splits_in_halves(files: Path | None) -> bool:
    """Whether an artifact's first layers of an expert are the halves of a stack's rows.

    GPTQModel calls the first half a gate, and the other what it lets through, also where the rows of
    both alternate (gpt-oss), and runs them so.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        config = read_json((files or Path()) / "config.json")
        makers = (config.get("quantization_config") or {}).get("meta", {}).get("quantizer", ())
        return any(str(maker).startswith("gptqmodel:") for maker in makers)
    return False


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
