"""A whole matrix rounded to the nearest values of a scheme."""

import torch
from torch.nn.functional import pad

from qsweep.formats.numbers.grids import Integers
from qsweep.formats.numbers.scheme import LayerScheme, Scheme
from qsweep.formats.packing import QuantizedMatrix


def round_to_nearest(weight: torch.Tensor, scheme: Scheme) -> QuantizedMatrix:
    """The nearest codes for a matrix, float32 [out, in], with scales as the scheme searches them."""
    layer = scheme.layers([weight])[0]
    grouped = grouped_rows(weight, scheme.groups(weight.shape[1]))
    return encoded(layer, grouped, *layer.find(grouped), weight.shape[1])


def round_to_grid(weight: torch.Tensor, bits: int, group_size: int, sym: bool) -> QuantizedMatrix:
    """The same on a uniform grid that spans a group's values and 0, as GPTQ and AWQ checkpoints have.

    Args:
        weight: float32 [out, in].
        bits: Bits per code.
        group_size: Inputs per group, a divisor of ``in``, or -1 for one group per row.
        sym: Whether zero stands in the middle of the grid.
    """
    return round_to_nearest(weight, Scheme(Integers(bits, sym), group_size))


def encoded(
    layer: LayerScheme,
    grouped: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    columns: int,
) -> QuantizedMatrix:
    """The nearest codes on grids that have been chosen.

    Args:
        layer: The layer's scheme.
        grouped: Weights [rows, groups, n], as :func:`grouped_rows` gives them.
        scale: Scales [rows, groups].
        zero: Zero points [rows, groups].
        columns: How many weights a row has.
    """
    codes = layer.codes(grouped, scale, zero).view(len(grouped), -1)
    if codes.shape[1] != columns:
        codes = codes[:, :columns].contiguous()
    g_idx = ragged_groups(columns, grouped.shape[-1], codes.device)
    return layer.matrix(codes, scale, zero, g_idx)


def ragged_groups(columns: int, size: int, device: torch.device) -> torch.Tensor | None:
    """The group of each column, int64 [columns], where the last one is not full; None where all are."""
    return torch.arange(columns, device=device) // size if columns % size else None


def grouped_rows(weight: torch.Tensor, size: int) -> torch.Tensor:
    """[rows, columns] as [rows, groups, size]; a last group that is not full is filled up with zeros."""
    rows, columns = weight.shape
    if missing := -columns % size:
        weight = pad(weight, (0, missing))
    return weight.reshape(rows, -1, size)
