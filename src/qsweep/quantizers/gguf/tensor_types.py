"""Which type which tensor of a file gets from llama.cpp's quantizer, by rules.

Nothing heavy is imported.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import IncompatibleTrial, UnknownLayout
from qsweep.formats.gguf.types import FileType, TensorType, tensor_type
from qsweep.models.source import ModelFacts
from qsweep.quantizers.gguf.rules import asked, check_blocks, outside_layers, value_of
from qsweep.quantizers.kept import kept_details
from qsweep.quantizers.rules import Rule, counting

if TYPE_CHECKING:
    import torch

    from qsweep.quantizers.conversion.base import UnquantizedFile

# Llama.cpp's mixture whose tensors are all quantized, so that what overrides it is heeded.
_QUANTIZED = 7


@dataclass(frozen=True)
class Chosen:
    """What rules make of a file.

    Attributes:
        written: The file type to ask llama.cpp for, under the name of the one that was chosen.
        patterns: The type of every tensor, by a regular expression of its name.
        facts: The model with the layers that are quantized as its ``linears``.
        details: What an artifact says of it.
    """

    written: FileType
    patterns: dict[str, TensorType]
    facts: ModelFacts
    details: dict[str, Any]


def types_of_tensors(
    rules: Sequence[Rule],
    model: ModelFacts,
    base: "UnquantizedFile",
    type_: FileType,
    matrix: "Mapping[str, torch.Tensor] | None",
    overrides: Mapping[str, TensorType],
) -> Chosen:
    """The type of every tensor in a file: a rule's, else the one that it has without rules.

    llama.cpp's mixtures count the layers that they decide of, so that what is said of one of them would
    shift the types of others. So all are named.

    Args:
        rules: In their order.
        model: The model.
        base: The file to quantize.
        type_: The mixture.
        matrix: The importance matrix, if there is one.
        overrides: What is not as in the mixture without rules.

    Raises:
        IncompatibleTrial: Layers that lie in one tensor differ, or llama.cpp would store another type.
        UnknownLayout: A layer is not found in the file.
    """
    from qsweep.formats.gguf.native import planned_types
    from qsweep.formats.gguf.reader import read_gguf

    tensors = read_gguf(base.path).tensors
    usual = planned_types(base.path, type_, matrix, overrides)
    wanted: dict[str, TensorType] = {}
    for tensor, (name, rule) in _rule_by_tensor(rules, model, base).items():
        wanted[tensor] = tensors[tensor].type if rule.keep else tensor_type(rule.type or "")
        check_blocks(
            f"quant.rules: {rule.pattern}", wanted[tensor], name, tensors[tensor].shape[-1]
        )
    matrices = {n: t for n, t in usual.items() if n in tensors and len(tensors[n].shape) > 1}
    patterns = {f"^{re.escape(name)}$": t for name, t in (matrices | wanted).items()}
    written = replace(type_, mixture=type_.mixture or _QUANTIZED) if _is_wide(type_) else type_
    planned = planned_types(base.path, written, matrix, patterns)
    for tensor, own in wanted.items():
        fits = tensors[tensor].shape[-1] % own.block == 0
        if planned[tensor] != own and fits:
            raise IncompatibleTrial(
                f"quant.rules: llama.cpp stores {tensor} as {planned[tensor].name}, whatever it is "
                "told; take it out"
            )
    kept, linears = _kept(rules, model), dict(model.linears)
    for name, shape in model.kept.items():
        if (own_rule := counting(rules, name)) is not None and not own_rule.keep:
            linears[name] = shape
    facts = replace(model, linears={n: s for n, s in linears.items() if n not in kept})
    others = matrices.keys() - wanted.keys()
    fallback = any(tensors[n].shape[-1] % t.block for n, t in wanted.items()) or any(
        tensors[n].shape[-1] % type_.block for n in others & _linear_tensors(facts, base)
    )
    return Chosen(written, patterns, facts, {"fallback": fallback, **kept_details(kept)})


def _rule_by_tensor(
    rules: Sequence[Rule], model: ModelFacts, base: "UnquantizedFile"
) -> dict[str, tuple[str, Rule]]:
    """The rule that counts for each tensor of the file, with a layer in it, where there is one."""
    outside, found = outside_layers(model), dict[str, list[tuple[str, Rule | None]]]()
    for name in (*model.all_linears, *outside):
        rule = counting(rules, name, outside)
        for tensor in _tensors(name, rule, outside, base):
            found.setdefault(tensor, []).append((name, rule))
    chosen = {}
    for tensor, named in found.items():
        decided = [(name, rule) for name, rule in named if rule is not None]
        # The head and the embedding that it repeats are one tensor by two names.
        if all(name in outside for name, _ in named):
            decided = list(asked(decided))
            named = [*decided]
        if len({value_of(rule) for _, rule in named}) > 1:
            (one, _), (other, _) = _differing(named)
            raise IncompatibleTrial(
                f"quant.rules: gguf has {one} and {other} in one tensor ({tensor}), and they differ; "
                "name both alike"
            )
        if decided:
            chosen[tensor] = decided[0]
    return chosen


def _tensors(
    name: str, rule: Rule | None, outside: Mapping[str, str], base: "UnquantizedFile"
) -> Iterator[str]:
    place = base.checkpoint.place(name).tensor
    found = base.layout.rules.get(place) or base.layout.rules.get(outside.get(name, place))
    if found is not None:
        yield from found.tensors
    elif rule is not None:
        raise UnknownLayout(
            f"quant.rules: {rule.pattern}: nobody knows where {name} lies in the converted file"
        )


def _linear_tensors(facts: ModelFacts, base: "UnquantizedFile") -> set[str]:
    from qsweep.quantizers.conversion.artifact import linear_tensors

    return linear_tensors(facts, base)


def _differing(
    named: Sequence[tuple[str, Rule | None]],
) -> tuple[tuple[str, Rule | None], tuple[str, Rule | None]]:
    first = named[0]
    return first, next(one for one in named if value_of(one[1]) != value_of(first[1]))


def _kept(rules: Sequence[Rule], model: ModelFacts) -> dict[str, str]:
    """By name, why linear layers are not quantized that would be without rules."""
    found = {}
    for name in model.all_linears:
        rule = counting(rules, name)
        if rule is not None and (rule.keep or not tensor_type(rule.type or "").quantized):
            found[name] = f"quant.rules: {rule.pattern}"
    return found


def _is_wide(type_: FileType) -> bool:
    # What is stored in whole numbers of bytes is not quantized, and no override is looked at.
    return type_.block == 1
