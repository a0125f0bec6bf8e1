"""Experts that a checkpoint stores as stacks [experts, …], as the linear layers that they are.

Which way round a stack's matrices lie is told by the shapes of the two that an expert consists of: the
first has twice the inner width among its outputs, gate and up. Nothing is imported and no weight is
read; what transformers makes of the stack is :mod:`qsweep.models.experts`' business.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

# What families call an expert's first layers, two in one, and its last one.
_FIRST = ("gate_up_proj", "input_linear", "w13", "w13_weight", "fc1")
_SINGLE = ("up_proj",)
_LAST = ("down_proj", "output_linear", "w2", "w2_weight", "fc2")
_NO_MATRIX = ("bias", "scale", "scales", "norm")

Shape = tuple[int, ...]


def expert_layer(stack: str, expert: int, layer: str) -> str:
    """The name of an expert's linear layer, given that of the stack it lies in.

    >>> expert_layer("model.layers.0.mlp.experts.gate_up_proj", 3, "up_proj")
    'model.layers.0.mlp.experts.3.up_proj'
    >>> expert_layer("model.layers.0.block_sparse_moe.input_linear.weight", 3, "up_proj")
    'model.layers.0.block_sparse_moe.experts.3.up_proj'
    """
    parent = stack.removesuffix(".weight").rpartition(".")[0]
    if parent.rpartition(".")[2] != "experts":
        parent += ".experts"
    return f"{parent}.{expert}.{layer}"


def stacked_linears(tensors: Mapping[str, Shape]) -> dict[str, tuple[int, int]]:
    """The linear layers that lie in stacks, as (outputs, inputs) by :func:`expert_layer`'s names.

    Args:
        tensors: Shapes of a decoder's tensors, by name.
    """
    return {name: shape for name, shape, _ in _layers(tensors)}


@dataclass(frozen=True)
class Place:
    """Where the weight of a linear layer lies in a checkpoint.

    Attributes:
        tensor: The tensor's name.
        expert: Which matrix of it, where it is a stack; None where it is the layer's alone.
        transposed: Whether a stack's matrices are [in, out].
    """

    tensor: str
    expert: int | None = None
    transposed: bool = False


def stack_places(tensors: Mapping[str, Shape]) -> dict[str, Place]:
    """Where each of :func:`stacked_linears`' layers lies."""
    return {name: place for name, _, place in _layers(tensors)}


def _layers(tensors: Mapping[str, Shape]) -> Iterator[tuple[str, tuple[int, int], Place]]:
    """Name, shape and place of every linear layer that lies in a stack."""
    for first, last, shapes in _pairs(tensors):
        transposed = (
            tensors[last][1:] != shapes["down_proj"] or tensors[first][2] != shapes["up_proj"][1]
        )
        for expert in range(tensors[first][0]):
            for layer, shape in shapes.items():
                stack = last if layer == "down_proj" else first
                yield expert_layer(stack, expert, layer), shape, Place(stack, expert, transposed)


def unread_experts(tensors: Mapping[str, Shape], counts: set[int]) -> list[str]:
    """Tensors of experts that are no linear layers here: who quantizes the others leaves them out.

    Args:
        tensors: Shapes of a decoder's tensors, by name.
        counts: The numbers of experts that the configuration speaks of.
    """
    read = {name for first, last, _ in _pairs(tensors) for name in (first, last)}
    return [
        name for name, shape in tensors.items() if name not in read and _odd(name, shape, counts)
    ]


def _odd(name: str, shape: Shape, counts: set[int]) -> bool:
    if any(name.removesuffix(".weight").endswith(word) for word in _NO_MATRIX):
        return False
    if len(shape) == 3:
        return shape[0] in counts and shape[1] > 1 and "conv" not in name
    return len(shape) == 2 and "experts" in name.split(".") and not name.endswith(".weight")


def _pairs(
    tensors: Mapping[str, Shape],
) -> Iterator[tuple[str, str, dict[str, tuple[int, int]]]]:
    """The stacks of each layer's experts, the first layers' and the last ones', and what is in them."""
    parents: dict[str, dict[str, str]] = {}
    for name in _stacks(tensors):
        parent = name.removesuffix(".weight").rpartition(".")[0]
        parents.setdefault(parent, {})[_kind(name)] = name
    for found in parents.values():
        first, last = found.get("first") or found.get("single"), found.get("last")
        if not first or not last or tensors[first][0] != tensors[last][0]:
            continue
        if shapes := _shapes(tensors[first][1:], tensors[last][1:], _kind(first)):
            yield first, last, shapes


def _shapes(first: Shape, last: Shape, kind: str) -> dict[str, tuple[int, int]]:
    # Of matrices that lie as [out, in] both or as [in, out] both.
    for (rows, width), (outputs, inner) in ((first, last), (first[::-1], last[::-1])):
        if outputs != width:
            continue
        if kind == "single" and rows == inner:
            return {"up_proj": (inner, width), "down_proj": (width, inner)}
        if kind == "first" and rows == 2 * inner:
            both = dict.fromkeys(("gate_proj", "up_proj"), (inner, width))
            return {**both, "down_proj": (width, inner)}
    return {}


def _stacks(tensors: Mapping[str, Shape]) -> Iterable[str]:
    return [name for name, shape in tensors.items() if len(shape) == 3 and _kind(name)]


def _kind(name: str) -> str:
    last = name.removesuffix(".weight").rpartition(".")[2]
    kinds = {**dict.fromkeys(_FIRST, "first"), **dict.fromkeys(_SINGLE, "single")}
    return (kinds | dict.fromkeys(_LAST, "last")).get(last, "")
