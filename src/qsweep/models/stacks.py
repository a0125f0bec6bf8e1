"""Experts that a checkpoint stores as stacks [experts, …], as the linear layers that they are.

Which way round a stack's matrices lie is told by the shapes of the two that an expert consists of: the
first has twice the inner width among its outputs, gate and up. Nothing is imported and no weight is
read; what transformers makes of the stack is :mod:`qsweep.models.experts`' business.
"""

from collections.abc import Iterable, Iterator, Mapping

# What families call an expert's first layers, two in one, and its last one.
_FIRST = ("gate_up_proj", "input_linear", "w13", "w13_weight")
_SINGLE = ("up_proj",)
_LAST = ("down_proj", "output_linear", "w2", "w2_weight")
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
    found: dict[str, tuple[int, int]] = {}
    for first, last in _pairs(tensors):
        (experts, one, other), (_, three, four) = tensors[first], tensors[last]
        if _kind(first) == "single":
            shapes = {"up_proj": (one, other), "down_proj": (three, four)}
        elif one % 2 == 0 and (one // 2, other) == (four, three):
            inner, width = one // 2, other
            shapes = {"gate_proj": (inner, width), "up_proj": (inner, width)}
            shapes["down_proj"] = (width, inner)
        elif other % 2 == 0 and (other // 2, one) == (three, four):
            inner, width = other // 2, one
            shapes = {"gate_proj": (inner, width), "up_proj": (inner, width)}
            shapes["down_proj"] = (width, inner)
        else:
            continue
        for expert in range(experts):
            for layer, shape in shapes.items():
                found[expert_layer(last if layer == "down_proj" else first, expert, layer)] = shape
    return found


def unread_experts(tensors: Mapping[str, Shape], counts: set[int]) -> list[str]:
    """Tensors of experts that are no linear layers here: who quantizes the others leaves them out.

    Args:
        tensors: Shapes of a decoder's tensors, by name.
        counts: The numbers of experts that the configuration speaks of.
    """
    read = {name for pair in _pairs(tensors) for name in pair}
    return [
        name for name, shape in tensors.items() if name not in read and _odd(name, shape, counts)
    ]


def _odd(name: str, shape: Shape, counts: set[int]) -> bool:
    if any(name.removesuffix(".weight").endswith(word) for word in _NO_MATRIX):
        return False
    if len(shape) == 3:
        return shape[0] in counts and shape[1] > 1 and "conv" not in name
    return len(shape) == 2 and "experts" in name.split(".") and not name.endswith(".weight")


def _pairs(tensors: Mapping[str, Shape]) -> Iterator[tuple[str, str]]:
    """The stacks of each layer's experts: the first layers', and the last ones'."""
    parents: dict[str, dict[str, str]] = {}
    for name in _stacks(tensors):
        parent = name.removesuffix(".weight").rpartition(".")[0]
        parents.setdefault(parent, {})[_kind(name)] = name
    for found in parents.values():
        first = found.get("first") or found.get("single")
        if first and "last" in found and tensors[first][0] == tensors[found["last"]][0]:
            yield first, found["last"]


def _stacks(tensors: Mapping[str, Shape]) -> Iterable[str]:
    return [name for name, shape in tensors.items() if len(shape) == 3 and _kind(name)]


def _kind(name: str) -> str:
    last = name.removesuffix(".weight").rpartition(".")[2]
    kinds = {**dict.fromkeys(_FIRST, "first"), **dict.fromkeys(_SINGLE, "single")}
    return (kinds | dict.fromkeys(_LAST, "last")).get(last, "")
