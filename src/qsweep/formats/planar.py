"""Codes of 3, 5, 6 and 7 bits in planes, as GPTQModel packs them so that no code straddles words.

Of every 32 codes the lowest 4 bits (2 bits, of 3-bit codes) lie in words of their own, then the bits
above those: a plane of ``width`` bits is ``width`` words, a little-endian stream as in
:mod:`qsweep.formats.packing`. GPTQModel writes 5, 6 and 7 bits in no other way, and 3 bits in its
format ``gptq_p``; at 2, 4 and 8 bits there is one plane, and so nothing to tell.
"""

from typing import TYPE_CHECKING

from qsweep.formats.packing import pack, unpack

if TYPE_CHECKING:
    import torch

# Bits -> width of each plane, from the lowest.
PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
_CODES = 32


def pack_planar(codes: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Codes below 2**bits [lines, count], count a multiple of 32: int32 [lines, count * bits / 32]."""
    import torch

    lines, count = codes.shape
    blocks = codes.reshape(-1, _CODES).to(torch.uint8)
    planes, low = [], 0
    for width in PLANES[bits]:
        planes.append(pack(blocks >> low & ((1 << width) - 1), width))
        low += width
    return torch.cat(planes, 1).reshape(lines, count * bits // 32)


def unpack_planar(words: "torch.Tensor", bits: int, count: int) -> "torch.Tensor":
    """The inverse of :func:`pack_planar`: the first ``count`` codes of each line, in uint8."""
    import torch

    lines = words.shape[0]
    blocks = words.reshape(-1, bits)
    codes = torch.zeros(blocks.shape[0], _CODES, dtype=torch.uint8, device=words.device)
    low = 0
    for width in PLANES[bits]:
        codes |= unpack(blocks[:, low : low + width], width, _CODES) << low
        low += width
    return codes.reshape(lines, -1)[:, :count]
