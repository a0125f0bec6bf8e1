"""Layers in Marlin's layout, which checkpoints of 2024 held before its kernels repacked others.

AutoGPTQ and GPTQModel call codes and scales ``B`` and ``s``, AutoAWQ ``qweight`` and ``scales``. The
kernel multiplies 16 x 64 weights at a time with tensor cores, and finds the eight codes that each
of 32 threads needs for each of the four 16 x 16 tiles side by side in one word; scales stand in the
order in which threads need them. Codes have 4 bits and their zero point is 8. See Frantar et al.,
"MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models"
(arXiv 2408.11743), and the m16n8k16 fragments in the PTX documentation.
"""

from typing import TYPE_CHECKING

from qsweep.formats.packing import QuantizedMatrix, pack, unpack

if TYPE_CHECKING:
    import torch

MARLIN_BITS = 4
_TILE = 16
_ZERO = 8


def unpack_marlin(words: "torch.Tensor", scales: "torch.Tensor") -> QuantizedMatrix:
    """Read a layer.

    Args:
        words: Codes, int32 [in / 16, out * 2].
        scales: [groups, out].
    """
    import torch

    rows, columns = words.shape[0] * _TILE, words.shape[1] // 2
    places = _places()
    codes = torch.empty(words.shape[0] * columns // 64, 1024, dtype=torch.uint8)
    codes[:, places] = unpack(words.cpu(), MARLIN_BITS, columns * _TILE).reshape(-1, 1024)
    codes = codes.reshape(-1, columns // _TILE, _TILE, _TILE).transpose(1, 2)
    order = _scale_places(scales.shape[0])
    sorted_scales = torch.empty_like(scales).reshape(-1, len(order))
    sorted_scales[:, order] = scales.reshape(-1, len(order))
    sorted_scales = sorted_scales.reshape(scales.shape).T
    return QuantizedMatrix(
        codes.reshape(rows, columns).T.contiguous().to(words.device),
        torch.full_like(sorted_scales, _ZERO, dtype=torch.uint8),
        sorted_scales,
    )


def pack_marlin(matrix: QuantizedMatrix) -> "tuple[torch.Tensor, torch.Tensor]":
    """The inverse of :func:`unpack_marlin`: words and scales."""
    outputs, inputs = matrix.codes.shape
    tiles = matrix.codes.T.reshape(inputs // _TILE, _TILE, outputs // _TILE, _TILE).transpose(1, 2)
    codes = tiles.reshape(-1, 1024)[:, _places()].reshape(inputs // _TILE, outputs * _TILE)
    scales = matrix.scales.T.contiguous()
    order = _scale_places(scales.shape[0])
    return pack(codes, MARLIN_BITS), scales.reshape(-1, len(order))[:, order].reshape(scales.shape)


def _places() -> "torch.Tensor":
    # Of four tiles' codes, tile by tile and row by row: which stands at each place of the words.
    import torch

    # Within a word the even ones of a thread's eight codes come first.
    thread, tile, code = torch.meshgrid(
        torch.arange(32), torch.arange(4), torch.tensor([0, 2, 4, 6, 1, 3, 5, 7]), indexing="ij"
    )
    row = 2 * (thread % 4) + code % 2 + 8 * (code % 4 // 2)
    column = thread // 4 + 8 * (code // 4)
    return (256 * tile + 16 * row + column).reshape(-1)


def _scale_places(groups: int) -> "torch.Tensor":
    # The same of scales: of 64 columns where there are groups, of 32 where there is one.
    import torch

    if groups > 1:
        return torch.arange(64).reshape(8, 8).T.reshape(-1)
    return (2 * torch.arange(4)[:, None] + torch.tensor([0, 1, 8, 9, 16, 17, 24, 25])).reshape(-1)
