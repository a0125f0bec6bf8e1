"""MXFP4, as gpt-oss is released: experts in 4 bits, everything else in 16.

Of a layer's experts, ``gate_up_proj_blocks`` uint8 [experts, out, in / 32, 16] holds two codes (e2m1)
per byte, ``gate_up_proj_scales`` uint8 [experts, out, in / 32] the exponent of each 32, plus 127; the
same of ``down_proj``. transformers 5.18 (``integrations/mxfp4.py``) reads them, and turns them over:
its model has [experts, in, out].
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qsweep.formats.checkpoint import QuantizedCheckpoint
from qsweep.models.facts import TensorHeader

if TYPE_CHECKING:
    import torch

_BLOCK = 32


class MXFP4Container(QuantizedCheckpoint):
    """See the module's docstring."""

    name = "mxfp4"
    quant_methods = ("mxfp4",)
    parts = ("blocks", "scales")

    def part_of(self, tensor: str) -> tuple[str, str]:
        """See :meth:`QuantizedCheckpoint.part_of`."""
        owner, _, part = tensor.rpartition("_")
        return (owner, part) if part in self.parts else (tensor, "")

    def is_quantized(self, parts: Mapping[str, TensorHeader]) -> bool:
        """See :meth:`QuantizedCheckpoint.is_quantized`."""
        return "" not in parts

    def dense(
        self, name: str, tensors: "Mapping[str, torch.Tensor]", settings: Mapping[str, Any]
    ) -> "torch.Tensor":
        """See :meth:`QuantizedCheckpoint.dense`."""
        import torch
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        blocks, scales = tensors["blocks"], tensors["scales"]
        _require_shapes(tuple(blocks.shape), tuple(scales.shape))
        found: torch.Tensor = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        return found

    def describe(
        self, name: str, parts: Mapping[str, TensorHeader], settings: Mapping[str, Any]
    ) -> tuple[str, int]:
        """See :meth:`QuantizedCheckpoint.describe`."""
        blocks = parts["blocks"]
        _require_shapes(blocks.shape, parts["scales"].shape)
        return "mxfp4", 2 * blocks.count


CONTAINER = MXFP4Container()


def _require_shapes(blocks: tuple[int, ...], scales: tuple[int, ...]) -> None:
    if len(blocks) != 4 or blocks[-1] != _BLOCK // 2:
        raise ValueError(f"blocks of the shape {list(blocks)}, not [experts, out, in / 32, 16]")
    if blocks[:-1] != scales:
        raise ValueError(f"scales of the shape {list(scales)} for blocks of {list(blocks)}")
