"""AWQ checkpoints, as AutoAWQ defined their layouts.

A layer of ``out`` x ``in`` weights, as ``version`` says:

- ``gemm``: ``qweight`` [in, out * bits / 32] and ``qzeros`` [groups, out * bits / 32] pack along the
  outputs, ``scales`` [groups, out]; at 4 bits the eight codes of a word stand in the order
  0 2 4 6 1 3 5 7. Which kernel runs it (exllama, ipex) makes no difference.
- ``gemv``, ``gemv_fast`` and ``llm-awq``: see :mod:`qsweep.formats.awq_gemv`.
- ``marlin``: ``qweight`` and ``scales`` as in :mod:`qsweep.formats.marlin`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.formats.awq_gemv import gemv_fast_layer, gemv_layer, unpack_gemv, unpack_gemv_fast
from qsweep.formats.checkpoint import Settings
from qsweep.formats.gptq import marlin_layer, refused_transform
from qsweep.formats.marlin import unpack_marlin
from qsweep.formats.packed import (
    MARLIN_GROUP_SIZES,
    PARTS,
    PackedContainer,
    PackedLayer,
    Shapes,
    layer_of,
)
from qsweep.formats.packed_settings import layout_of
from qsweep.formats.packing import QuantizedMatrix, pack, unpack
from qsweep.models.facts import TensorHeader

if TYPE_CHECKING:
    import torch

# Position in the word -> number of the code, and the inverse.
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_INVERSE = (0, 4, 1, 5, 2, 6, 3, 7)
_GEMM = ("", "gemm", "exllama", "exllamav2", "ipex")
_FAST = ("gemv_fast", "llm-awq")
_LAYOUTS = (*_GEMM, "gemv", *_FAST, "marlin")


class AWQContainer(PackedContainer):
    """See the module's docstring."""

    name = "awq"
    quant_methods = ("awq",)
    parts = PARTS[:3]
    optional = (*PARTS[3:], "scaled_zeros", "workspace")
    codes = PARTS[:1]
    group_sizes = (16, 32, 64, 128)
    packed_sides = "rows"
    holds_conv1d = False

    def refusal(self, path: Path, settings: Mapping[str, Any]) -> str | None:
        """See :meth:`Container.refusal`."""
        if (layout := _layout(settings)) not in _LAYOUTS:
            known = ", ".join(name for name in _LAYOUTS if name)
            return f"its layout is {layout[:40]!r}; {known} are read"
        return refused_transform(settings)

    def needed(self, parts: Mapping[str, TensorHeader], settings: Settings) -> tuple[str, ...]:
        """See :meth:`QuantizedCheckpoint.needed`."""
        if _layout(settings) == "marlin":
            return ("qweight", "scales")
        return ("qweight", "scales", "scaled_zeros") if "scaled_zeros" in parts else self.parts

    def pack(
        self, matrix: QuantizedMatrix, settings: Mapping[str, Any]
    ) -> "dict[str, torch.Tensor]":
        """See :meth:`PackedContainer.pack`."""
        return pack_awq(matrix, settings["bits"])

    def layer(self, name: str, shapes: Shapes, settings: Settings) -> PackedLayer:
        """See :meth:`PackedContainer.layer`."""
        layout = _layout(settings)
        if layout == "marlin":
            return marlin_layer(name, shapes, settings, "qweight", "scales")
        if layout == "gemv":
            return gemv_layer(name, shapes, settings)
        if layout in _FAST:
            return gemv_fast_layer(name, shapes, settings)
        (inputs, _), word = shapes["qweight"]
        (groups, outputs), _ = shapes["scales"]

        def expected(bits: int) -> tuple[int, dict[str, tuple[int, int]]]:
            words = -(-outputs * bits // word)
            return inputs, {"qweight": (inputs, words), "qzeros": (groups, words)}

        return layer_of(name, outputs, groups, settings, shapes, expected)

    def unpack(
        self, layer: PackedLayer, tensors: "Mapping[str, torch.Tensor]", settings: Settings
    ) -> "torch.Tensor":
        """See :meth:`PackedContainer.unpack`."""
        import torch

        layout = _layout(settings)
        qweight, scales = tensors["qweight"], tensors["scales"]
        if layout in _FAST:
            zeros = tensors["scaled_zeros" if "scaled_zeros" in tensors else "qzeros"]
            return unpack_gemv_fast(qweight, scales, zeros, layer.groups)
        if layout == "marlin":
            matrix = unpack_marlin(qweight, scales)
        elif layout == "gemv":
            matrix = unpack_gemv(qweight, tensors["qzeros"], scales, layer.groups)
        else:
            matrix = unpack_awq(qweight, tensors["qzeros"], scales, layer.bits)
        return matrix.dense(torch.float32)

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
) -> QuantizedMatrix:
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
    return QuantizedMatrix(codes.T.contiguous(), zeros.T, scales.T)


def pack_awq(matrix: QuantizedMatrix, bits: int) -> dict[str, "torch.Tensor"]:
    """The inverse of :func:`unpack_awq`: its three tensors by name, scales [groups, out] in float16."""
    import torch

    codes, zeros = matrix.codes.T, matrix.zeros.T
    if bits == 4:
        codes, zeros = _reorder(codes, _ORDER), _reorder(zeros, _ORDER)
    return {
        "qweight": pack(codes, bits),
        "qzeros": pack(zeros, bits),
        "scales": matrix.scales.T.to(torch.float16).contiguous(),
    }


def _layout(settings: Settings) -> str:
    # llm-awq's own checkpoints are told by a ``backend``, and by no version that is their layout.
    if settings.get("backend") == "llm-awq":
        return "llm-awq"
    return layout_of(settings, ("format", "checkpoint_format", "version"))


def _reorder(codes: "torch.Tensor", order: tuple[int, ...]) -> "torch.Tensor":
    lines, count = codes.shape
    return codes.reshape(lines, count // 8, 8)[..., list(order)].reshape(lines, count)
