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
from qsweep.formats.artifact import Artifact, Size
from qsweep.models.facts import distinct_weights, read_config, read_tensors, weight_files

if TYPE_CHECKING:
    import torch

    from qsweep.formats.packing import Grid

_PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")


def compressed_state_dict(artifact: Artifact, device: str) -> dict[str, Any]:
    """The dense weights of a compressed-tensors artifact, by name, each unpacked on demand.

    Raises:
        ArtifactCorrupt: Its format is another one, or a layer lacks one of its tensors.
    """
    from qsweep.formats.weights import LazyWeight, open_weights, quantization_settings

    bits = _bits(artifact.path, quantization_settings(artifact.path))
    handles = open_weights(artifact.path)
    state: dict[str, Any] = {}
    for name, handle in handles.items():
        layer, _, part = name.rpartition(".")
        if part == "weight_packed":
            state[f"{layer}.weight"] = LazyWeight(
                _Unpacker(layer, handles, artifact.path, bits, device)
            )
        elif part not in _PARTS:
            state[name] = handle.get_slice(name)
    if not any(name.endswith(".weight_packed") for name in handles):
        raise ArtifactCorrupt(f"{artifact.path}: no quantized layer in its weight files")
    return state


def unpack_compressed(
    weight_packed: "torch.Tensor",
    weight_scale: "torch.Tensor",
    weight_shape: "torch.Tensor",
    bits: int,
    weight_zero_point: "torch.Tensor | None" = None,
    weight_g_idx: "torch.Tensor | None" = None,
) -> "Grid":
    """Read the tensors of a layer; shapes as in the module's docstring."""
    import torch

    from qsweep.formats.packing import Grid, unpack

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


def compressed_size(path: Path) -> Size:
    """Count what a compressed-tensors checkpoint stores, from the headers of its files."""
    tensors = distinct_weights(read_tensors(path), read_config(path))
    bits = _bits(path, read_config(path)["quantization_config"])
    linear_bits = linear_weights = other = 0
    for name, info in tensors.items():
        part = name.rpartition(".")[2]
        if part not in _PARTS:
            other += info.count
            continue
        linear_bits += info.bits
        if part == "weight_packed":
            linear_weights += info.count * 32 // bits
    return Size(
        weight_bytes=sum(file.stat().st_size for file in weight_files(path)),
        linear_bits=linear_bits,
        linear_weights=linear_weights,
        total_bits=sum(info.bits for info in tensors.values()),
        parameters=other + linear_weights,
    )


class _Unpacker:
    """Reads one layer's tensors and gives its dense weight."""

    def __init__(self, layer: str, handles: Mapping[str, Any], path: Path, bits: int, device: str):
        for part in ("weight_scale", "weight_shape"):
            if f"{layer}.{part}" not in handles:
                raise ArtifactCorrupt(f"{path}: {layer} has no {part}")
        names = {part: f"{layer}.{part}" for part in _PARTS if f"{layer}.{part}" in handles}
        self._tensors = {part: (handles[name], name) for part, name in names.items()}
        self._bits, self._device = bits, device

    def __call__(self) -> "torch.Tensor":
        import torch

        tensors = {
            part: handle.get_tensor(name).to(self._device)
            for part, (handle, name) in self._tensors.items()
        }
        return unpack_compressed(**tensors, bits=self._bits).dense(torch.float32)


def _bits(path: Path, settings: Mapping[str, Any]) -> int:
    groups = settings.get("config_groups") or {}
    widths = {group["weights"]["num_bits"] for group in groups.values() if group.get("weights")}
    if settings.get("format") != "pack-quantized" or len(widths) != 1:
        raise ArtifactCorrupt(
            f"{path}: compressed-tensors in the format {settings.get('format')} with weights of "
            f"{sorted(widths)} bits; qsweep reads pack-quantized of one width"
        )
    return int(widths.pop())
