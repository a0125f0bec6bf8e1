"""AWQ layers as AutoAWQ's kernels for single tokens want them: ``gemv``, ``gemv_fast``, ``llm-awq``.

Of a layer of ``out`` x ``in`` weights in 4 bits, with the groups' number raised to ``padded``, a
multiple of 8 (of 16 at 64 inputs a group, of 32 at 32 and 64 at 16):

- ``gemv``: ``qweight`` int32 [out, in / 8] and ``qzeros`` int32 [out, padded / 8] pack along the
  inputs and the groups in order, ``scales`` [out, padded].
- ``gemv_fast``: ``qweight`` int16 [out / 4, in], ``scales`` [padded, out], and ``qzeros`` [padded, out]
  in floating point: minus scale times zero point, so that a weight is code * scale + qzero.
  ``llm-awq`` calls them ``scaled_zeros``.

In ``gemv_fast`` 64 inputs of four outputs are one piece of 64 words, and each word holds codes of one
output: 16 words in a row are its 64 inputs, of which each block of 32 is four words of eight inputs
apart (0 1 8 9 16 17 24 25, then 2 3 10 11 and so on), even ones first.
"""

from typing import TYPE_CHECKING

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.checkpoint import Settings
from qsweep.formats.packed import PackedLayer, Shapes, layer_of
from qsweep.formats.packed_settings import stated_of
from qsweep.formats.packing import QuantizedMatrix, unpack

if TYPE_CHECKING:
    import torch

_BITS = 4


def gemv_layer(name: str, shapes: Shapes, settings: Settings) -> PackedLayer:
    """See :meth:`PackedContainer.layer`; of ``gemv``."""
    (outputs, words), _ = shapes["qweight"]
    inputs = words * 8
    groups = _groups(name, inputs, settings)
    padded = _padded(inputs, groups)

    def expected(bits: int) -> tuple[int, dict[str, tuple[int, int]]]:
        wanted = {"qzeros": (outputs, padded * bits // 32), "scales": (outputs, padded)}
        return inputs, wanted

    return _of_four_bits(layer_of(name, outputs, groups, settings, shapes, expected))


def gemv_fast_layer(name: str, shapes: Shapes, settings: Settings) -> PackedLayer:
    """See :meth:`PackedContainer.layer`; of ``gemv_fast`` and ``llm-awq``."""
    (quarter, inputs), word = shapes["qweight"]
    outputs = quarter * 4
    zeros = "scaled_zeros" if "scaled_zeros" in shapes else "qzeros"
    if word != 16 or inputs % 64:
        raise ArtifactCorrupt(
            f"{name}: qweight of {inputs} words of {word} bits; gemv_fast has a multiple of 64, of 16"
        )
    groups = _groups(name, inputs, settings)
    padded = _padded(inputs, groups)

    def expected(bits: int) -> tuple[int, dict[str, tuple[int, int]]]:
        return inputs, {"scales": (padded, outputs), zeros: (padded, outputs)}

    return _of_four_bits(layer_of(name, outputs, groups, settings, shapes, expected))


def unpack_gemv(
    qweight: "torch.Tensor", qzeros: "torch.Tensor", scales: "torch.Tensor", groups: int
) -> QuantizedMatrix:
    """Read a layer of ``gemv``; its tensors are shaped as the module's docstring says."""
    codes = unpack(qweight, _BITS, qweight.shape[1] * 8)
    return QuantizedMatrix(codes, unpack(qzeros, _BITS, groups), scales[:, :groups])


def unpack_gemv_fast(
    qweight: "torch.Tensor", scales: "torch.Tensor", scaled_zeros: "torch.Tensor", groups: int
) -> "torch.Tensor":
    """The weights of a layer of ``gemv_fast`` or ``llm-awq``, float32 [out, in].

    Its zero points are no whole numbers any more: they were rounded after scaling.
    """
    import torch

    quarter, inputs = qweight.shape
    # Nibble n of word w of a piece is the code of the interleaved place 4 w + n; four outputs of 64.
    codes = unpack(qweight, _BITS, inputs * 4).reshape(quarter, inputs // 64, 4, 64)
    codes = codes.transpose(1, 2).reshape(quarter * 4, inputs // 32, 4, 2, 4)
    # By word of eight, odd or even, and distance in eights; back to the order of the inputs.
    codes = codes.permute(0, 1, 4, 2, 3).reshape(quarter * 4, groups, inputs // groups)
    weight = codes.to(torch.float32)
    weight.mul_(scales[:groups].T[..., None].to(torch.float32))
    weight.add_(scaled_zeros[:groups].T[..., None].to(torch.float32))
    return weight.reshape(quarter * 4, inputs)


def _groups(name: str, inputs: int, settings: Settings) -> int:
    # Padded, scales do not tell how many there are.
    stated = stated_of(settings, name)
    size = inputs if stated.group_sizes[0] == -1 else stated.group_sizes[0]
    if size < 1 or inputs % size:
        raise ArtifactCorrupt(f"{name}: groups of {size}, as stated, do not divide {inputs} inputs")
    return inputs // size


def _padded(inputs: int, groups: int) -> int:
    multiple = {64: 2, 32: 4, 16: 8}.get(inputs // groups, 1)
    return -(-groups // (8 * multiple)) * 8 * multiple


def _of_four_bits(layer: PackedLayer) -> PackedLayer:
    if layer.bits != _BITS:
        raise ArtifactCorrupt(f"{layer.name}: {layer.bits} bits, as stated; this layout has 4")
    return layer
