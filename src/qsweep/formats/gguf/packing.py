"""Codes and scales as the bytes of llama.cpp's blocks, row by row (``block_*`` of ``ggml-common.h``)."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qsweep.formats.numbers.superblocks import BlockMatrix


def block_bytes(matrix: "BlockMatrix") -> "torch.Tensor":
    """A matrix [out, in] as it lies in a file: uint8 [out, bytes of a row]."""
    import torch

    rows, columns = matrix.codes.shape
    type_ = matrix.type
    blocks = rows * columns // type_.span
    parts = _LAYOUTS[type_.name](
        matrix.codes.cpu().view(blocks, type_.span),
        matrix.scales.cpu().reshape(blocks, -1).to(torch.int16),
        matrix.zeros.cpu().reshape(blocks, -1),
        matrix.outer.cpu().reshape(blocks, 2),
    )
    return torch.cat(parts, 1).view(rows, -1)


Parts = list["torch.Tensor"]
_Layout = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"], Parts]


def _halves(numbers: "torch.Tensor") -> "torch.Tensor":
    """float16 [blocks, n] as bytes."""
    import torch

    return numbers.to(torch.float16).contiguous().view(torch.uint8)


def _nibbles(codes: "torch.Tensor", size: int) -> "torch.Tensor":
    """The low four bits of codes: of each 2 * ``size``, the first half below the second."""
    pairs = (codes & 15).view(len(codes), -1, 2, size)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).flatten(1)


def _planes(bits: "torch.Tensor", width: int, size: int) -> "torch.Tensor":
    """Numbers of ``width`` bits: in each ``size`` bytes, 8 / width runs of ``size``, lowest first."""
    runs = bits.view(len(bits), -1, 8 // width, size)
    found = runs[:, :, 0].clone()
    for place in range(1, 8 // width):
        found |= runs[:, :, place] << (width * place)
    return found.flatten(1)


def _flags(codes: "torch.Tensor") -> "torch.Tensor":
    """The fifth bits of 32 codes as 32 bits, the first lowest."""
    import torch

    bits = (codes >> 4 & 1).view(len(codes), 4, 8)
    places = torch.arange(8, dtype=torch.uint8)
    return (bits << places).sum(-1, dtype=torch.uint8)


def _six_bits(scales: "torch.Tensor", minima: "torch.Tensor") -> "torch.Tensor":
    """Eight scales and eight minima of six bits in twelve bytes, as Q4_K and Q5_K have them."""
    import torch

    s, m = scales.to(torch.uint8), minima
    first, last = slice(0, 4), slice(4, 8)
    return torch.cat(
        [
            s[:, first] | s[:, last] >> 4 << 6,
            m[:, first] | m[:, last] >> 4 << 6,
            s[:, last] & 15 | (m[:, last] & 15) << 4,
        ],
        1,
    )


def _q2_k(
    codes: "torch.Tensor", scales: "torch.Tensor", minima: "torch.Tensor", outer: "torch.Tensor"
) -> Parts:
    import torch

    return [scales.to(torch.uint8) | minima << 4, _planes(codes, 2, 32), _halves(outer)]


def _q3_k(
    codes: "torch.Tensor", scales: "torch.Tensor", minima: "torch.Tensor", outer: "torch.Tensor"
) -> Parts:
    import torch

    stored = (scales + 32).to(torch.uint8)
    small = torch.cat([_nibbles(stored, 8), _planes(stored >> 4, 2, 4)], 1)
    high, low = _planes(codes >> 2, 1, 32), _planes(codes & 3, 2, 32)
    return [high, low, small, _halves(outer[:, :1])]


def _q4_k(
    codes: "torch.Tensor", scales: "torch.Tensor", minima: "torch.Tensor", outer: "torch.Tensor"
) -> Parts:
    return [_halves(outer), _six_bits(scales, minima), _nibbles(codes, 32)]


def _q5_k(
    codes: "torch.Tensor", scales: "torch.Tensor", minima: "torch.Tensor", outer: "torch.Tensor"
) -> Parts:
    high = _planes(codes >> 4, 1, 32)
    return [_halves(outer), _six_bits(scales, minima), high, _nibbles(codes, 32)]


def _q6_k(
    codes: "torch.Tensor", scales: "torch.Tensor", minima: "torch.Tensor", outer: "torch.Tensor"
) -> Parts:
    import torch

    stored = scales.to(torch.int8).view(torch.uint8)
    return [_nibbles(codes, 64), _planes(codes >> 4, 2, 32), stored, _halves(outer[:, :1])]


def _q4_0(
    codes: "torch.Tensor", scales: "torch.Tensor", minima: "torch.Tensor", outer: "torch.Tensor"
) -> Parts:
    return [_halves(outer[:, :1]), _nibbles(codes, 16)]


def _q5_0(
    codes: "torch.Tensor", scales: "torch.Tensor", minima: "torch.Tensor", outer: "torch.Tensor"
) -> Parts:
    return [_halves(outer[:, :1]), _flags(codes), _nibbles(codes, 16)]


def _q5_1(
    codes: "torch.Tensor", scales: "torch.Tensor", minima: "torch.Tensor", outer: "torch.Tensor"
) -> Parts:
    # It adds what the others take away.
    d, minimum = _halves(outer[:, :1]), _halves(-outer[:, 1:])
    return [d, minimum, _flags(codes), _nibbles(codes, 16)]


def _q8_0(
    codes: "torch.Tensor", scales: "torch.Tensor", minima: "torch.Tensor", outer: "torch.Tensor"
) -> Parts:
    return [_halves(outer[:, :1]), codes ^ 128]


_LAYOUTS: dict[str, _Layout] = {
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
    "Q4_0": _q4_0, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
}  # fmt: skip
