"""compressed-tensors checkpoints, as llm-compressor writes and vLLM serves them, read densely.

A linear layer of ``out`` x ``in`` weights in the format "pack-quantized" (compressed-tensors 0.19):
``weight_packed`` int32 [out, in * bits / 32] holds codes raised by 2**(bits - 1), packed along the
inputs without gaps; ``weight_scale`` [out, groups]; ``weight_shape`` = (out, in);
``weight_zero_point`` int32 [out * bits / 32, groups], packed along the outputs and raised alike,
where the grid is asymmetric; ``weight_g_idx`` [in], the group of each input, where groups are not
consecutive. weight = scale * (code - zero point).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.checkpoint import QuantizedCheckpoint
from qsweep.formats.packing import Grid, unpack
from qsweep.models.facts import TensorHeader

if TYPE_CHECKING:
    import torch


class CompressedTensorsContainer(QuantizedCheckpoint):
    """See the module's docstring. vLLM alone serves it as it is; elsewhere it is unpacked first."""

    name = "compressed-tensors"
    quant_methods = ("compressed-tensors",)
    parts = ("weight_packed", "weight_scale", "weight_shape")
    optional = ("weight_zero_point", "weight_g_idx")

    def refusal(self, path: Path, settings: Mapping[str, Any]) -> str | None:
        """See :meth:`Container.refusal`."""
        return None if _bits(settings) else "qsweep reads pack-quantized with one number of bits"

    def dense(
        self, name: str, tensors: "Mapping[str, torch.Tensor]", settings: Mapping[str, Any]
    ) -> "torch.Tensor":
        """See :meth:`QuantizedCheckpoint.dense`."""
        import torch

        return unpack_compressed(**tensors, bits=_required_bits(settings)).dense(torch.float32)

    def describe(
        self, name: str, parts: Mapping[str, TensorHeader], settings: Mapping[str, Any]
    ) -> tuple[str, int]:
        """See :meth:`QuantizedCheckpoint.describe`."""
        bits = _required_bits(settings)
        return f"int{bits}", parts["weight_packed"].count * 32 // bits


CONTAINER = CompressedTensorsContainer()


def unpack_compressed(
    weight_packed: "torch.Tensor",
    weight_scale: "torch.Tensor",
    weight_shape: "torch.Tensor",
    bits: int,
    weight_zero_point: "torch.Tensor | None" = None,
    weight_g_idx: "torch.Tensor | None" = None,
) -> Grid:
    """Read a layer.

    Args:
        weight_packed: Codes, int32 [out, in * bits / 32].
        weight_scale: [out, groups].
        weight_shape: (out, in).
        bits: Bits per code.
        weight_zero_point: Zero points, int32 [out * bits / 32, groups]; None if in the middle.
        weight_g_idx: The group of each input, [in]; None if groups are consecutive.
    """
    import torch

    outputs, inputs = (int(size) for size in weight_shape)
    codes = unpack(weight_packed, bits, inputs)
    if weight_zero_point is None:
        zeros = torch.full_like(weight_scale, 1 << (bits - 1), dtype=torch.uint8)
    else:
        zeros = unpack(weight_zero_point.T, bits, outputs).T
    groups = weight_g_idx
    # Minus one everywhere: written before the order was known, so there is none.
    if groups is not None and bool((groups < 0).any()):
        groups = None
    return Grid(codes, zeros, weight_scale, None if groups is None else groups.to(torch.int64))


def _required_bits(settings: Mapping[str, Any]) -> int:
    if (bits := _bits(settings)) is None:
        raise ArtifactCorrupt(
            f"a compressed-tensors checkpoint in {settings.get('format')!r}; "
            "qsweep reads pack-quantized with one number of bits"
        )
    return bits


def _bits(settings: Mapping[str, Any]) -> int | None:
    groups = settings.get("config_groups") or {}
    widths = {group["weights"]["num_bits"] for group in groups.values() if group.get("weights")}
    if settings.get("format") != "pack-quantized" or len(widths) != 1:
        return None
    return int(widths.pop())
