"""GPTQ checkpoints, as GPTQModel, transformers and vLLM read them.

A layer of ``out`` x ``in`` weights: ``qweight`` int32 [in * bits / 32, out] packs along the inputs,
``qzeros`` int32 [groups, out * bits / 32] along the outputs, ``scales`` [groups, out], ``g_idx``
[in] names each input's group. Version 1 of the format stores zero points less 1, version 2 as they
are.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qsweep.formats.packed import MARLIN_GROUP_SIZES, PARTS, PackedContainer
from qsweep.formats.packing import Grid, pack, unpack

if TYPE_CHECKING:
    import torch


class GPTQContainer(PackedContainer):
    """See the module's docstring.

    >>> fits = GPTQContainer().fits
    >>> fits(64, (128, 256)), fits(64, (4, 256)), fits(64, (128, 96))
    (True, False, False)
    """

    name = "gptq"
    quant_methods = ("gptq",)
    parts = PARTS
    group_sizes = (16, 32, 64, 128, 256, 512, 1024)
    packed_sides = "rows and columns"

    def pack(self, grid: Grid, settings: Mapping[str, Any]) -> "dict[str, torch.Tensor]":
        """See :meth:`PackedContainer.pack`."""
        return pack_gptq(grid, settings["bits"], _version(settings))

    def unpack(self, settings: Mapping[str, Any], **tensors: "torch.Tensor") -> Grid:
        """See :meth:`PackedContainer.unpack`."""
        return unpack_gptq(**tensors, bits=int(settings["bits"]), version=_version(settings))

    def packs(self, shape: tuple[int, int]) -> bool:
        """Words of 32 bits lie along both dimensions."""
        return shape[0] % 32 == 0 and shape[1] % 32 == 0

    def runtimes(self, bits: int, group_size: int, sym: bool) -> tuple[str, ...]:
        """See :meth:`PackedContainer.runtimes`."""
        names = ["gptqmodel", "transformers"]
        if group_size in MARLIN_GROUP_SIZES and sym and bits in (4, 8):
            names.append("vllm")
        if bits == 4 and sym:
            names.append("exllamav2")
        return tuple(names)


CONTAINER = GPTQContainer()


def format_of(sym: bool) -> str:
    """The version to write: of version 1, loaders disagree on what becomes of a zero point of 0."""
    return "gptq" if sym else "gptq_v2"


def unpack_gptq(
    qweight: "torch.Tensor",
    qzeros: "torch.Tensor",
    scales: "torch.Tensor",
    g_idx: "torch.Tensor",
    bits: int,
    version: int = 1,
) -> Grid:
    """Read a GPTQ layer.

    Args:
        qweight: Codes, int32 [in * bits / 32, out].
        qzeros: Zero points, int32 [groups, out * bits / 32].
        scales: [groups, out].
        g_idx: The group of each input, [in].
        bits: Bits per code.
        version: 1 where zero points are stored less 1.
    """
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
    """The inverse of :func:`unpack_gptq`: its four tensors by name, scales [groups, out] in float16."""
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


def _version(settings: Mapping[str, Any]) -> int:
    return 2 if "gptq_v2" in (settings.get("checkpoint_format"), settings.get("format")) else 1


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
