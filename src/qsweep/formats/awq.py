"""AWQ checkpoints in GEMM layout, as AutoAWQ defined it.

A layer of ``out`` x ``in`` weights: ``qweight`` int32 [in, out * bits / 32] and ``qzeros`` int32
[groups, out * bits / 32] both pack along the outputs, ``scales`` [groups, out]; at 4 bits the eight
codes of a word stand in the order 0 2 4 6 1 3 5 7.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qsweep.formats.packed import MARLIN_GROUP_SIZES, PARTS, PackedContainer
from qsweep.formats.packing import Grid, pack, unpack

if TYPE_CHECKING:
    import torch

# Position in the word -> number of the code, and the inverse.
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_INVERSE = (0, 4, 1, 5, 2, 6, 3, 7)


class AWQContainer(PackedContainer):
    """See the module's docstring."""

    name = "awq"
    quant_methods = ("awq",)
    parts = PARTS[:3]
    optional = PARTS[3:]
    group_sizes = (16, 32, 64, 128)
    packed_sides = "rows"
    holds_conv1d = False

    def pack(self, grid: Grid, settings: Mapping[str, Any]) -> "dict[str, torch.Tensor]":
        """See :meth:`PackedContainer.pack`."""
        return pack_awq(grid, settings["bits"])

    def unpack(self, settings: Mapping[str, Any], **tensors: "torch.Tensor") -> Grid:
        """See :meth:`PackedContainer.unpack`."""
        tensors.pop("g_idx", None)
        return unpack_awq(**tensors, bits=int(settings["bits"]))

    def packs(self, shape: tuple[int, int]) -> bool:
        """Words of 32 bits lie along the outputs."""
        return shape[0] % 32 == 0

    def runtimes(self, bits: int, group_size: int, sym: bool) -> tuple[str, ...]:
        """See :meth:`PackedContainer.runtimes`."""
        served = bits == 4 and group_size in MARLIN_GROUP_SIZES and not sym
        return ("gptqmodel", "transformers", *(["vllm"] if served else []))


CONTAINER = AWQContainer()


def unpack_awq(
    qweight: "torch.Tensor", qzeros: "torch.Tensor", scales: "torch.Tensor", bits: int
) -> Grid:
    """Read an AWQ layer.

    Args:
        qweight: Codes, int32 [in, out * bits / 32].
        qzeros: Zero points, int32 [groups, out * bits / 32].
        scales: [groups, out].
        bits: Bits per code.
    """
    outputs = scales.shape[1]
    codes, zeros = unpack(qweight, bits, outputs), unpack(qzeros, bits, outputs)
    if bits == 4:
        codes, zeros = _reorder(codes, _INVERSE), _reorder(zeros, _INVERSE)
    return Grid(codes.T.contiguous(), zeros.T, scales.T)


def pack_awq(grid: Grid, bits: int) -> dict[str, "torch.Tensor"]:
    """The inverse of :func:`unpack_awq`: its three tensors by name, scales [groups, out] in float16."""
    import torch

    codes, zeros = grid.codes.T, grid.zeros.T
    if bits == 4:
        codes, zeros = _reorder(codes, _ORDER), _reorder(zeros, _ORDER)
    return {
        "qweight": pack(codes, bits),
        "qzeros": pack(zeros, bits),
        "scales": grid.scales.T.to(torch.float16).contiguous(),
    }


def _reorder(codes: "torch.Tensor", order: tuple[int, ...]) -> "torch.Tensor":
    lines, count = codes.shape
    return codes.reshape(lines, count // 8, 8)[..., list(order)].reshape(lines, count)
