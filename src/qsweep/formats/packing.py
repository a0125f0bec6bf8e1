"""Low-bit codes to 32-bit words and back, as GPTQ and AWQ checkpoints store them.

Both store a linear layer of ``out`` x ``in`` weights as codes q, and per group of ``group_size``
inputs a scale s and a zero point z: weight = s * (q - z). They differ in how codes lie in words.

GPTQ: ``qweight`` [in * bits / 32, out] packs along the inputs, ``qzeros`` [groups, out * bits / 32]
along the outputs, ``scales`` [groups, out], ``g_idx`` [in] names each input's group. Version 1 of
the format stores z - 1, version 2 stores z.
AWQ (GEMM): ``qweight`` [in, out * bits / 32] and ``qzeros`` [groups, out * bits / 32] both pack
along the outputs; at 4 bits the eight codes of a word stand in the order 0 2 4 6 1 3 5 7.

Within a line of words, codes are one little-endian stream of bits. On a little-endian machine the
bytes of the words are that same stream, so packing works on bytes: a quarter of the memory.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BITS = (2, 3, 4, 8)
# Position in the word -> number of the code, and the inverse.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_AWQ_INVERSE = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class Grid:
    """A quantized matrix before packing or after unpacking.

    Attributes:
        codes: uint8 [out, in].
        zeros: uint8 [out, groups].
        scales: floating point [out, groups].
        g_idx: int64 [in], the group of each input; None where groups are consecutive.
    """

    codes: "torch.Tensor"
    zeros: "torch.Tensor"
    scales: "torch.Tensor"
    g_idx: "torch.Tensor | None" = None

    def dense(self, dtype: "torch.dtype") -> "torch.Tensor":
        """The weights scale * (code - zero), computed in float32, as [out, in] of ``dtype``."""
        import torch

        rows, columns = self.codes.shape
        scales = self.scales.to(torch.float32)
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


def unpack_gptq(
    qweight: "torch.Tensor",
    qzeros: "torch.Tensor",
    scales: "torch.Tensor",
    g_idx: "torch.Tensor",
    bits: int,
    version: int = 1,
) -> Grid:
    """Read the four tensors of a GPTQ layer; shapes as in the module's docstring."""
    import torch

    inputs, outputs = g_idx.shape[0], scales.shape[1]
    codes = unpack(qweight.T, bits, inputs)
    zeros = unpack(_shift_zeros(qzeros, bits, 1) if version == 1 else qzeros, bits, outputs)
    group, groups = g_idx.to(torch.int64), scales.shape[0]
    consecutive = inputs % groups == 0 and torch.equal(
        group, torch.arange(inputs, device=group.device) // (inputs // groups)
    )
    return Grid(codes, zeros.T, scales.T, None if consecutive else group)


def pack_gptq(grid: Grid, bits: int, version: int = 1) -> dict[str, "torch.Tensor"]:
    """The four tensors of a GPTQ layer: qweight, qzeros, scales (float16) and g_idx."""
    import torch

    inputs, groups = grid.codes.shape[1], grid.scales.shape[1]
    g_idx = grid.g_idx
    if g_idx is None:
        g_idx = torch.arange(inputs, device=grid.codes.device) // (inputs // groups)
    qzeros = pack(grid.zeros.T, bits)
    return {
        "qweight": pack(grid.codes, bits).T.contiguous(),
        "qzeros": _shift_zeros(qzeros, bits, -1) if version == 1 else qzeros,
        "scales": grid.scales.T.to(torch.float16).contiguous(),
        "g_idx": g_idx.to(torch.int32),
    }


def unpack_awq(
    qweight: "torch.Tensor", qzeros: "torch.Tensor", scales: "torch.Tensor", bits: int
) -> Grid:
    """Read the three tensors of an AWQ layer; shapes as in the module's docstring."""
    outputs = scales.shape[1]
    codes, zeros = unpack(qweight, bits, outputs), unpack(qzeros, bits, outputs)
    if bits == 4:
        codes, zeros = _reorder(codes, _AWQ_INVERSE), _reorder(zeros, _AWQ_INVERSE)
    return Grid(codes.T.contiguous(), zeros.T, scales.T)


def pack_awq(grid: Grid, bits: int) -> dict[str, "torch.Tensor"]:
    """The three tensors of an AWQ layer: qweight, qzeros and scales (float16)."""
    import torch

    codes, zeros = grid.codes.T, grid.zeros.T
    if bits == 4:
        codes, zeros = _reorder(codes, _AWQ_ORDER), _reorder(zeros, _AWQ_ORDER)
    return {
        "qweight": pack(codes, bits),
        "qzeros": pack(zeros, bits),
        "scales": grid.scales.T.to(torch.float16).contiguous(),
    }


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
    if bits == 3:
        shifts = 3 * torch.arange(8, dtype=torch.int32, device=codes.device)
        joined = (codes.to(torch.int32) << shifts).sum(-1, dtype=torch.int32)
        stream = torch.stack([(joined >> s & 255).to(torch.uint8) for s in (0, 8, 16)], -1)
        stream = stream.reshape(lines, -1)
    else:
        stream = codes[..., 0].clone()
        for place in range(1, per_unit):
            stream |= codes[..., place] << (place * bits)
    return stream[:, : words * 4].contiguous().view(torch.int32)


def unpack(words: "torch.Tensor", bits: int, count: int) -> "torch.Tensor":
    """The first ``count`` codes of each line of int32 [lines, words]: uint8 [lines, count]."""
    import torch

    _check(bits)
    lines = words.shape[0]
    stream = words.contiguous().view(torch.uint8)
    per_unit, unit = _unit(bits)
    if stream.shape[1] % unit:
        stream = torch.nn.functional.pad(stream, (0, unit - stream.shape[1] % unit))
    if bits == 8:
        codes = stream
    elif bits == 3:
        parts = stream.reshape(lines, -1, 3).to(torch.int32)
        joined = parts[..., 0] | parts[..., 1] << 8 | parts[..., 2] << 16
        codes = torch.stack([(joined >> (3 * place) & 7).to(torch.uint8) for place in range(8)], -1)
    else:
        mask = (1 << bits) - 1
        codes = torch.stack([stream >> (bits * place) & mask for place in range(per_unit)], -1)
    return codes.reshape(lines, -1)[:, :count]


def _unit(bits: int) -> tuple[int, int]:
    # The smallest piece of the stream that begins and ends with a byte: (codes, bytes).
    return (8, 3) if bits == 3 else (8 // bits, 1)


def _shift_zeros(qzeros: "torch.Tensor", bits: int, by: int) -> "torch.Tensor":
    # GPTQModel converts between the versions on whole words at 2, 4 and 8 bits, so that a zero
    # point of 0 borrows from its neighbour, and code by code at 3 bits. What it wrote must be read
    # the same way.
    import torch

    if bits == 3:
        count = qzeros.shape[1] * 32 // 3
        return pack((unpack(qzeros, 3, count).to(torch.int16) + by) & 7, 3)[:, : qzeros.shape[1]]
    ones = sum(1 << place for place in range(0, 32, bits))
    return (qzeros.to(torch.int64) + by * ones).to(torch.int32)


def _reorder(codes: "torch.Tensor", order: tuple[int, ...]) -> "torch.Tensor":
    lines, count = codes.shape
    return codes.reshape(lines, count // 8, 8)[..., list(order)].reshape(lines, count)


def _check(bits: int) -> None:
    if bits not in BITS:
        raise ValueError(f"{bits} bits: GPTQ and AWQ checkpoints hold {BITS}")
