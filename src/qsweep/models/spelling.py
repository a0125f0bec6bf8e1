"""What a checkpoint calls the parameters of a model in memory.

transformers renames and stacks tensors while it loads (transformers/conversion_mapping.py): a layer
``block_sparse_moe`` of a checkpoint is ``mlp`` in memory, and the experts' ``w1`` and ``w3`` lie in one
``gate_up_proj``. Its own loader is asked where each tensor of a checkpoint goes, so that no family is
known here by name.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from qsweep.models.architecture import empty_model
from qsweep.models.experts import attach_experts, attached, parts_of
from qsweep.models.facts import read_outline
from qsweep.models.stacks import expert_layer


@dataclass(frozen=True)
class Spelling:
    """The checkpoint's names, by those in memory.

    Attributes:
        plain: Of parameters that are tensors of the checkpoint one by one.
        experts: Of the linear layers of experts (:func:`~qsweep.models.experts.attach_experts`).
        merged: Stacks that transformers makes of tensors of the checkpoint.
        split: Of layers that are a part of a layer of the checkpoint, that layer.
        unused: Tensors of the checkpoint that transformers leaves out: layers that predict further
            tokens, another sense's.
    """

    plain: dict[str, str] = field(default_factory=dict)
    experts: dict[str, str] = field(default_factory=dict)
    merged: set[str] = field(default_factory=set)
    split: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def tensor(self, name: str) -> str:
        """What the checkpoint calls a tensor; one that it does not have keeps its name."""
        layer, _, part = name.rpartition(".")
        if layer in self.experts:
            return f"{self.experts[layer]}.{part}"
        return self.plain.get(name, name)

    def layer(self, name: str) -> str:
        """What the checkpoint calls a linear layer."""
        return self.tensor(f"{name}.weight").removesuffix(".weight")

    def stored_in(self, name: str) -> str:
        """The layer of the checkpoint that holds a linear layer's weight: the same, or a whole."""
        return self.split.get(name) or self.layer(name)


def spelling_of(model: nn.Module, stored: Iterable[str]) -> Spelling:
    """How a checkpoint spells a model that was loaded from it.

    Args:
        model: The model, with experts attached.
        stored: The names of the checkpoint's tensors.
    """
    layers = {
        (f"{name}.{part.parameter}", expert, part.block): f"{name}.{expert}.{part.name}"
        for name, module in attached(model)
        for part in parts_of(module)
        for expert in range(len(getattr(module, part.parameter)))
    }
    found = Spelling()
    stacks: dict[str, str] = {}
    for source, target, block, blocks in _places(model, stored, found):
        if block is None and blocks == 1:
            found.plain[target] = source
        elif block is not None:
            number = [int(word) for word in source.split(".") if word.isdecimal()][-1]
            layer = layers.get((target, number, block))
            if layer is not None and blocks == _blocks(model, target):
                found.experts[layer] = source.removesuffix(".weight")
                found.merged.add(target)
                continue
        stacks[target] = source
    # Of stacks that are stored as such, experts are called as in memory, below the stack's own name.
    for (stack, expert, _), layer in layers.items():
        if layer not in found.experts and stack in stacks:
            found.experts[layer] = expert_layer(stacks[stack], expert, layer.rpartition(".")[2])
    return found


def called_in_memory(path: Path, layers: Collection[str], **options: Any) -> list[str]:
    """What transformers calls linear layers of a checkpoint once it has loaded them.

    Args:
        path: The checkpoint's directory.
        layers: Names of its layers.
        options: As transformers' configurations and models take them.

    Returns:
        Of the layers that it calls otherwise the names, sorted; nothing where it builds no such model.
    """
    from transformers import AutoConfig

    try:
        shell = empty_model(AutoConfig.from_pretrained(path, **options), **options)
    except (OSError, ImportError, ValueError, TypeError, AttributeError):
        return []
    attach_experts(shell)
    spelling = spelling_of(shell, read_outline(path))
    names = (name.rpartition(".")[0] for name in shell.state_dict())
    return sorted({name for name in names if name not in layers and spelling.layer(name) in layers})


def _places(
    model: Any, stored: Iterable[str], spelling: Spelling
) -> Iterator[tuple[str, str, int | None, int]]:
    """Each stored tensor's name, and of the parameter that it goes into.

    ``spelling`` is told the layers that become of one that is taken apart, and what is left out.

    Of tensors that are stacked, also which of a matrix's parts it is (None of others), and how many
    such parts there are.
    """
    from transformers.core_model_loading import WeightConverter

    mapping = _mapping(model)
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    own = dict(model.state_dict())
    for source, target, pattern in _renamed(model, stored):
        if target is None:
            spelling.unused.append(source)
            continue
        if pattern is None:
            yield source, target, None, 1
            continue
        patterns, targets = by_pattern[pattern].source_patterns, by_pattern[pattern].target_patterns
        if "*" in pattern and len(targets) == 1:
            yield source, target, patterns.index(pattern), len(patterns)
        elif "*" not in pattern and len(targets) > 1 and target.endswith(".weight"):
            whole = source.removesuffix(".weight")
            parts = [target.replace(targets[0], one, 1) for one in targets]
            spelling.split.update(
                {part.removesuffix(".weight"): whole for part in parts if part in own}
            )
        elif "*" not in pattern and len(targets) == 1 and (len(patterns) > 1 or source == target):
            # One that is renamed and turned over is written as it is in memory.
            yield source, target, None, len(patterns)


def targets(model: Any, stored: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Each stored tensor's name, and of the parameter or buffer that it, or a first part, goes into.

    Args:
        model: The model, which may lie on the meta device.
        stored: The names of the checkpoint's tensors; None is told of one that it has no use for.
    """
    return ((source, target) for source, target, _ in _renamed(model, stored))


def _renamed(model: Any, stored: Iterable[str]) -> Iterator[tuple[str, str | None, str | None]]:
    """The same, with the pattern of the conversion that a tensor takes part in, if it does."""
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    mapping = _mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    own = dict(model.state_dict())
    for source in stored:
        target, pattern = rename_source_key(
            source, renamings, converters, model.base_model_prefix, own
        )
        if target not in own and source in own:
            target, pattern = source, None
        yield source, target if target in own else None, pattern


def _mapping(model: Any) -> list[Any]:
    from transformers.conversion_mapping import get_model_conversion_mapping

    mapping = getattr(model, "_weight_conversions", None)
    found: list[Any] = get_model_conversion_mapping(model) if mapping is None else mapping
    return found


def _blocks(model: nn.Module, parameter: str) -> int:
    parent, _, name = parameter.rpartition(".")
    found = [
        part.blocks for part in parts_of(model.get_submodule(parent)) if part.parameter == name
    ]
    return found[0] if found else 0
