"""compressed-tensors checkpoints, as llm-compressor writes and vLLM serves them, read densely.

A linear layer of ``out`` x ``in`` weights in the format "pack-quantized" (compressed-tensors 0.19):
``weight_packed`` int32 [out, in * bits / 32] holds codes raised by 2**(bits - 1), packed along the
inputs without gaps; ``weight_scale`` [out, groups]; ``weight_shape`` = (out, in);
``weight_zero_point`` int32 [out * bits / 32, groups], packed along the outputs and raised alike,
where the grid is asymmetric; ``weight_g_idx`` [in], the group of each input, where groups are not
consecutive. weight = scale * (code - zero point).
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.artifact import Artifact, Size
from qsweep.formats.container import Container, checkpoint_size
from qsweep.formats.packing import Grid, unpack
from qsweep.formats.weights import quantization_settings, unpacked_weights
from qsweep.models.facts import TensorHeader, read_config

if TYPE_CHECKING:
    import torch

_PARTS = ("weight_packed", "weight_scale", "weight_shape")
_OPTIONAL = ("weight_zero_point", "weight_g_idx")


class CompressedTensorsContainer(Container):
    """See the module's docstring. vLLM alone serves it as it is; elsewhere it is unpacked first."""

    name = "compressed-tensors"

    def dense_weights(self, artifact: Artifact, source: Path, device: str) -> dict[str, Any]:
        """See :meth:`Container.dense_weights`; also raised where its format is another one."""
        bits = _bits(artifact.path, quantization_settings(artifact.path))
        unpack = partial(unpack_compressed, bits=bits)
        return unpacked_weights(artifact.path, _PARTS, unpack, device, optional=_OPTIONAL)

    def size(self, path: Path) -> Size:
        """See :meth:`Container.size`."""
        bits = _bits(path, read_config(path)["quantization_config"])

        def weights_of(name: str, info: TensorHeader) -> int | None:
            part = name.rpartition(".")[2]
            if part not in (*_PARTS, *_OPTIONAL):
                return None
            return info.count * 32 // bits if part == "weight_packed" else 0

        return checkpoint_size(path, weights_of)


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


def _bits(path: Path, settings: Mapping[str, Any]) -> int:
    groups = settings.get("config_groups") or {}
    widths = {group["weights"]["num_bits"] for group in groups.values() if group.get("weights")}
    if settings.get("format") != "pack-quantized" or len(widths) != 1:
        raise ArtifactCorrupt(
            f"{path}: compressed-tensors in the format {settings.get('format')} with weights of "
            f"{sorted(widths)} bits; qsweep reads pack-quantized of one width"
        )
    return int(widths.pop())
