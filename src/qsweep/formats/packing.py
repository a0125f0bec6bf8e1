"""Quantized matrices, and their low-bit codes in 32-bit words as checkpoints store them.

A linear layer of ``out`` x ``in`` weights is codes q, and per group of ``group_size`` inputs a scale
s and a zero point z: weight = s * (q - z), or s * table[q] where levels are no whole numbers.
Containers differ in how codes lie in words.

Within a line of words, codes are one little-endian stream of bits. On a little-endian machine the
bytes of the words are that same stream, so packing works on bytes: a quarter of the memory.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# What quantizers write, and what checkpoints may hold.
BITS = (2, 3, 4, 8)
ALL_BITS = range(2, 9)


@dataclass(frozen=True)
class QuantizedMatrix:
    """A quantized matrix before packing or after unpacking.

    Attributes:
        codes: uint8 [out, in].
        zeros: uint8 [out, groups].
        scales: floating point [out, groups]; what codes are multiplied by, a global scale included.
        g_idx: int64 [in], the group of each input; None where groups are consecutive and alike.
        table: The level of each code, float32; None where it is the code minus its zero point.
        whole: float32 [], the global scale, or [out, 1] of layers that stand one below the other;
            None where there is none.
    """

    codes: "torch.Tensor"
    zeros: "torch.Tensor"
    scales: "torch.Tensor"
    g_idx: "torch.Tensor | None" = None
    table: "torch.Tensor | None" = None
    whole: "torch.Tensor | None" = None

    def dense(self, dtype: "torch.dtype") -> "torch.Tensor":
        """The weights scale * level, computed in float32, as [out, in] of ``dtype``."""
        import torch

        rows, columns = self.codes.shape
        scales = self.scales.to(torch.float32)
        if self.table is not None:
            levels = self.table.to(self.codes.device)[self.codes.to(torch.int32)]
            if self.g_idx is not None:
                return levels.mul_(scales[:, self.g_idx]).to(dtype)
            grouped = levels.view(rows, scales.shape[1], columns // scales.shape[1])
            return grouped.mul_(scales[..., None]).view(rows, columns).to(dtype)
        # zero * scale - code * scale would round twice; the difference of small integers is exact.
        if self.g_idx is not None:
            zeros = self.zeros[:, self.g_idx].to(torch.float32)
            weight = self.codes.to(torch.float32).sub_(zeros).mul_(scales[:, self.g_idx])
        else:
            shape = (rows, scales.shape[1], columns // scales.shape[1])
            weight = self.codes.to(torch.float32).reshape(shape)
            weight.sub_(self.zeros[..., None].to(torch.float32)).mul_(scales[..., None])
            weight = weight.view(rows, columns)
        return weight.to(dtype)

    def rows(self, which: slice) -> "QuantizedMatrix":
        """Those of its rows that are one layer, where it is several, one below the other."""
        codes, zeros, scales = self.codes[which], self.zeros[which], self.scales[which]
        whole = self.whole
        if whole is not None and whole.ndim:
            whole = whole[which][0, 0]
        return replace(self, codes=codes, zeros=zeros, scales=scales, whole=whole)


def pack(codes: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Codes below 2**bits [lines, count], as one stream of bits per line: int32 [lines, words].

    A last word that is not full is filled up with zeros.
    """
    import torch

    _check(bits)
    lines, count = codes.shape
    words = -(-count * bits // 32)
    per_unit, unit = _unit(bits)
    padded = -(-words * 4 // unit) * per_unit
    codes = codes.to(torch.uint8)
    if padded != count:
        codes = torch.nn.functional.pad(codes, (0, padded - count))
    codes = codes.reshape(lines, -1, per_unit)
    if unit > 1:
        joined = codes[..., 0].to(torch.int64)
        for place in range(1, per_unit):
            joined |= codes[..., place].to(torch.int64) << (bits * place)
        stream = torch.stack(
            [(joined >> (8 * byte) & 255).to(torch.uint8) for byte in range(unit)], -1
        )
        stream = stream.reshape(lines, -1)
    else:
        stream = codes[..., 0].clone()
        for place in range(1, per_unit):
            stream |= codes[..., place] << (place * bits)
    return stream[:, : words * 4].contiguous().view(torch.int32)


def unpack(words: "torch.Tensor", bits: int, count: int) -> "torch.Tensor":
    """The first ``count`` codes of each line of whole numbers [lines, words]: uint8 [lines, count].

    Words may have 8, 16, 32 or 64 bits: it is the same stream.
    """
    import torch

    _check(bits)
    lines = words.shape[0]
    stream = words.contiguous().view(torch.uint8)
    per_unit, unit = _unit(bits)
    if stream.shape[1] % unit:
        stream = torch.nn.functional.pad(stream, (0, unit - stream.shape[1] % unit))
    if bits == 8:
        codes = stream
    elif unit > 1:
        parts = stream.reshape(lines, -1, unit)
        joined = parts[..., 0].to(torch.int64)
        for byte in range(1, unit):
            joined |= parts[..., byte].to(torch.int64) << (8 * byte)
        mask = (1 << bits) - 1
        places = range(per_unit)
        codes = torch.stack([(joined >> (bits * n) & mask).to(torch.uint8) for n in places], -1)
    else:
        mask = (1 << bits) - 1
        codes = torch.stack([stream >> (bits * place) & mask for place in range(per_unit)], -1)
    return codes.reshape(lines, -1)[:, :count]


def _unit(bits: int) -> tuple[int, int]:
    # The smallest piece of the stream that begins and ends with a byte: (codes, bytes).
    return (8 // bits, 1) if bits in (1, 2, 4, 8) else (8, bits)


def _check(bits: int) -> None:
    if bits not in (1, *ALL_BITS):  # one bit is a plane of wider codes
        raise ValueError(f"{bits} bits: GPTQ and AWQ checkpoints hold 2 to 8")
