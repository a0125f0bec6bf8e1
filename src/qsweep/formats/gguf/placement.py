"""Where the rows of a linear layer lie in a file: of one that is alone, and of an expert's in a stack."""

from typing import TYPE_CHECKING

from qsweep.base.errors import UnknownLayout
from qsweep.formats.gguf.blocks import Block
from qsweep.formats.gguf.rules import Layout
from qsweep.models.stacks import Place

if TYPE_CHECKING:
    import torch

    from qsweep.formats.gguf.checkpoint import Checkpoint

    Placed = list[tuple[str, torch.Tensor | None, torch.Tensor]]


def rows_in_file(
    layer: str, rows: "torch.Tensor", layout: Layout, checkpoint: "Checkpoint"
) -> "Placed":
    """Where the rows of a linear layer's weight are in the file, whatever stands in a row.

    Args:
        layer: The layer's name in the checkpoint; an expert's may be a part of a stack there.
        rows: [out, ...], one for each of the layer's outputs.
        layout: Where the checkpoint's tensors lie.
        checkpoint: The model.

    Returns:
        The file's tensors, which of their rows (None: all; those of a stack are counted through),
        and what lies there.

    Raises:
        UnknownLayout: its numbers are changed, or its rows are columns.
    """
    import torch

    place = checkpoint.place(layer)
    rule = layout.rules[place.tensor]
    if place.expert is not None:
        return _of_stack(layer, rows, place, layout, checkpoint.infos[place.tensor].shape)
    if rule.slice is None:
        return layout.rows_in_file(place.tensor, rows)
    first = rule.slice * len(rows)
    return [(rule.tensor, torch.arange(first, first + len(rows)), rows)]


def _of_stack(
    layer: str, rows: "torch.Tensor", place: Place, layout: Layout, shape: tuple[int, ...]
) -> "Placed":
    """Rows of the expert's matrices, found by the rows of the stack that lie in each tensor."""
    import torch

    rule = layout.rules[place.tensor]
    experts, size = shape[0], shape[2 if place.transposed else 1]
    blocks = rule.blocks or ()
    if all(block.turned and (block.source, block.count) == (block.file, 1) for block in blocks):
        # The same matrices in the same order, told by their columns, or not told at all.
        blocks = (Block(rule.tensor, 0, 0, experts * size),)
    plain = rule.rows is None and not (rule.order or rule.transpose or rule.add or rule.exp)
    if not (plain and rule.has_columns(turned=place.transposed)):
        raise UnknownLayout(f"{layer} lies in {rule.tensor} otherwise than row by row")
    if any(block.scale != 1 or block.turned for block in blocks):
        raise UnknownLayout(f"{rule.tensor} holds other numbers than {layer}")
    found: dict[str, list[tuple[int, int]]] = {}
    for block in blocks:
        source = block.rows(block.source, block.source_step)
        file = block.rows(block.file, block.file_step)
        own = source // size == place.expert
        both = zip((source[own] % size).tolist(), file[own].tolist(), strict=True)
        found.setdefault(block.tensor, []).extend(both)
    # Of a gate and what it lets through, the gate comes first: in each other tensor, or in one.
    parts = sorted((sorted(pairs), tensor) for tensor, pairs in found.items() if pairs)
    if len(parts) == 1 and size == 2 * len(rows):
        ((pairs, tensor),) = parts
        parts = [(pairs[: len(rows)], tensor), (pairs[len(rows) :], tensor)]
    pairs, tensor = parts[1 if len(parts) > 1 and layer.endswith(".up_proj") else 0]
    if len(pairs) != len(rows):
        raise UnknownLayout(f"{layer} lies in {tensor} otherwise than row by row")
    return [(tensor, torch.tensor([file for _, file in pairs]), rows)]
