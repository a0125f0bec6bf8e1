"""Experts that a checkpoint stores as stacks [experts, …], as the linear layers that they are.

Which way round a stack's matrices lie is told by the shapes of the two that an expert consists of: the
first has twice the inner width among its outputs, gate and up. Nothing is imported and no weight is
read; what transformers makes of the stack is :mod:`qsweep.models.experts`' business.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# What families call an expert's first layers, two in one or each by itself, and its last one.
_KINDS = {
    **dict.fromkeys(("gate_up_proj", "input_linear", "w13", "w13_weight", "fc1"), "both"),
    "gate_proj": "gate",
    "up_proj": "up",
    **dict.fromkeys(("down_proj", "output_linear", "w2", "w2_weight", "fc2"), "down"),
}
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
    for stacks, shapes in _groups(tensors):
        last = stacks["down"]
        up = stacks.get("both") or stacks["up"]
        transposed = (
            tensors[last][1:] != shapes["down_proj"] or tensors[up][2] != shapes["up_proj"][1]
        )
        for expert in range(tensors[last][0]):
            for layer, shape in shapes.items():
                stack = stacks.get(layer.removesuffix("_proj")) or stacks["both"]
                yield expert_layer(stack, expert, layer), shape, Place(stack, expert, transposed)


def stored_twice(tensors: Mapping[str, Shape]) -> tuple[str, str] | None:
    """A tensor of one expert and a stack that has all of them, in the same module; None where none is.

    Args:
        tensors: Shapes of a decoder's tensors, by name.
    """
    single = {
        name.partition(".experts.")[0]: name
        for name in tensors
        if name.partition(".experts.")[2].partition(".")[0].isdecimal()
    }
    for stacks, _ in _groups(tensors):
        layer = expert_layer(stacks["down"], 0, "down_proj")
        if (one := single.get(layer.partition(".experts.")[0])) is not None:
            return one, stacks["down"]
    return None


def unread_experts(tensors: Mapping[str, Shape], counts: set[int]) -> list[str]:
    """Tensors of experts that are no linear layers here: who quantizes the others leaves them out.

    Args:
        tensors: Shapes of a decoder's tensors, by name.
        counts: The numbers of experts that the configuration speaks of.
    """
    read = {name for stacks, _ in _groups(tensors) for name in stacks.values()}
    return [
        name for name, shape in tensors.items() if name not in read and _odd(name, shape, counts)
    ]


def _odd(name: str, shape: Shape, counts: set[int]) -> bool:
    if any(name.removesuffix(".weight").endswith(word) for word in _NO_MATRIX):
        return False
    if len(shape) == 3 and ("expert" in name or name.endswith(".weight")):
        return shape[0] in counts and shape[1] > 1 and "conv" not in name
    return len(shape) == 2 and "experts" in name.split(".") and not name.endswith(".weight")


def _groups(
    tensors: Mapping[str, Shape],
) -> Iterator[tuple[dict[str, str], dict[str, tuple[int, int]]]]:
    """The stacks of each layer's experts by kind, and the linear layers in them."""
    parents: dict[str, dict[str, str]] = {}
    for name, shape in tensors.items():
        parent, _, last = name.removesuffix(".weight").rpartition(".")
        if len(shape) == 3 and last in _KINDS:
            parents.setdefault(parent, {})[_KINDS[last]] = name
    for stacks in parents.values():
        alike = len({tensors[name][0] for name in stacks.values()}) == 1
        shapes = _shapes({kind: tensors[name][1:] for kind, name in stacks.items()})
        if alike and shapes:
            yield stacks, shapes


def _shapes(found: Mapping[str, Shape]) -> dict[str, tuple[int, int]]:
    """The layers (outputs, inputs) of an expert whose stacks' matrices have these shapes, by kind."""
    if found.keys() not in ({"both", "down"}, {"gate", "up", "down"}, {"up", "down"}):
        return {}
    # Of matrices that lie as [out, in] all, or as [in, out] all.
    for turned in (False, True):
        own = {kind: shape[::-1] if turned else shape for kind, shape in found.items()}
        width, inner = own.pop("down")
        first = (
            {"both": (2 * inner, width)} if "both" in own else dict.fromkeys(own, (inner, width))
        )
        if own == first:
            both = "both" in own or "gate" in own
            names = ("gate_proj", "up_proj") if both else ("up_proj",)
            return {**dict.fromkeys(names, (inner, width)), "down_proj": (width, inner)}
    return {}
