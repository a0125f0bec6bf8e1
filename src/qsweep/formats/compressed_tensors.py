"""compressed-tensors checkpoints, as llm-compressor writes and vLLM serves them, read densely.

The ``quantization_config`` has groups of layers, each with the numbers that its weights and
activations are (:mod:`qsweep.formats.compressed_schemes`) and a format, which says how codes lie in
files (compressed-tensors 0.20, ``compressors/``):

- ``pack-quantized``: ``weight_packed`` int32 [out, in * bits / 32], integers raised by
  2**(bits - 1), packed along the inputs without gaps; ``weight_shape`` = (out, in);
  ``weight_zero_point`` int32 [out * bits / 32, groups], packed along the outputs and raised alike,
  where the grid is asymmetric; ``weight_g_idx`` [in], the group of each input, where groups are not
  consecutive, as versions before 0.20 wrote them.
- ``int-quantized``, ``float-quantized``, ``naive-quantized``, ``mxfp8-quantized``: ``weight`` int8 or
  float8 [out, in].
- ``nvfp4-pack-quantized``, ``mxfp4-pack-quantized``: ``weight_packed`` uint8 [out, in / 2], two e2m1
  numbers per byte; ``mxfp6-pack-quantized``: [out, in * 3 / 4], four e2m3 numbers in three bytes.

``weight_scale`` is of the tensor, the channel [out, 1], the group [out, groups] or the block; mx
formats store the exponent plus 127 in a byte, nvfp4 float8 and a ``weight_global_scale``. weight =
scale * (code - zero point), for nvfp4 scale / global scale * code. The library's own compressors
compute that here, from scales in float32.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.activations import LayerActivations, NotSimulated, rounding
from qsweep.formats.checkpoint import QuantizedCheckpoint, Settings
from qsweep.formats.compressed_schemes import (
    Schemes,
    described,
    dtype_name,
    read_schemes,
    served,
)
from qsweep.formats.weights import quantization_settings
from qsweep.models.facts import TensorHeader
from qsweep.models.safetensors_header import read_integers

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

# What static scales of activations and of the KV cache are called (QuantizationMetadata,
# KVCacheScaleType), with ModelOpt's and older names.
ACTIVATIONS = tuple(
    f"{of}_{what}"
    for of in ("input", "output", "q", "k", "v")
    for what in ("scale", "zero_point", "global_scale", "g_idx")
)
_SCHEMES = "schemes"
_FLOATS = frozenset({"F32", "F16", "BF16"})
_BYTES = frozenset({"U8", "F8_E8M0"})
# By format: what its codes may be stored as, and how many there are per stored element.
_CODES = {
    **dict.fromkeys(("mxfp4-pack-quantized", "nvfp4-pack-quantized"), ({"U8"}, 2.0)),
    "mxfp6-pack-quantized": ({"U8"}, 4 / 3),
}
# By type and bits, of the formats that store one code per element.
_WHOLE_CODES = {"int": {"I8"}, "float": {"F8_E4M3", "F8_E5M2"}}


class CompressedTensorsContainer(QuantizedCheckpoint):
    """See the module's docstring. vLLM alone serves it as it is; elsewhere it is unpacked first."""

    name = "compressed-tensors"
    quant_methods = ("compressed-tensors",)
    parts = ("weight_packed", "weight_scale")
    optional = (
        *("weight", "weight_shape", "weight_zero_point"),
        *("weight_global_scale", "weight_g_idx"),
    )
    activations = ACTIVATIONS

    def settings(self, path: Path) -> Settings:
        """See :meth:`QuantizedCheckpoint.settings`."""
        stated = quantization_settings(path)
        try:
            return {**stated, _SCHEMES: read_schemes(stated)}
        except ArtifactCorrupt as error:
            raise ArtifactCorrupt(f"{path}: {error}") from error

    def refusal(self, path: Path, settings: Settings) -> str | None:
        """See :meth:`Container.refusal`."""
        try:
            read_schemes(settings)
        except ArtifactCorrupt as error:
            return str(error)
        return None

    def details(self, path: Path) -> dict[str, Any]:
        """See :meth:`Container.details`."""
        schemes: Schemes = self.settings(path)[_SCHEMES]
        return served(schemes)

    def quantizes_activations(self, path: Path) -> bool:
        """See :meth:`Container.quantizes_activations`."""
        schemes: Schemes = self.settings(path)[_SCHEMES]
        return any(group.input_activations or group.output_activations for group in schemes.every)

    def layer_activations(self, path: Path) -> dict[str, LayerActivations]:
        """See :meth:`Container.layer_activations`."""
        schemes: Schemes = self.settings(path)[_SCHEMES]
        for group in schemes.every:
            if group.weights is None and (group.input_activations or group.output_activations):
                raise NotSimulated(
                    f"config_groups quantizes activations alone of {', '.join(group.targets)[:80]}, "
                    "whose weights are as they were"
                )
        if not self.quantizes_activations(path):
            return {}

        def read(layer: str, stored: Mapping[str, "torch.Tensor"]) -> LayerActivations:
            scheme, _ = schemes.of(layer)
            stated = {"input": scheme.input_activations, "output": scheme.output_activations}
            inputs, outputs = (
                None if args is None else rounding(layer, of, args, stored)
                for of, args in stated.items()
            )
            return LayerActivations(inputs, outputs)

        return self.activations_by_layer(path, read)

    def quantizes_weights(self, settings: Settings) -> bool:
        """See :meth:`QuantizedCheckpoint.quantizes_weights`."""
        return bool(settings[_SCHEMES].groups)

    def is_quantized(self, parts: Mapping[str, TensorHeader]) -> bool:
        """See :meth:`QuantizedCheckpoint.is_quantized`."""
        weight = parts.get("weight")
        codes = weight is not None and weight.dtype not in _FLOATS
        return codes or any(part in parts for part in self.parts)

    def needed(self, parts: Mapping[str, TensorHeader], settings: Settings) -> tuple[str, ...]:
        """See :meth:`QuantizedCheckpoint.needed`; :meth:`describe` knows what a layer's format needs."""
        return ()

    def dense(
        self, name: str, tensors: "Mapping[str, torch.Tensor]", settings: Settings
    ) -> "torch.Tensor":
        """See :meth:`QuantizedCheckpoint.dense`."""
        scheme, format_ = settings[_SCHEMES].of(name.removesuffix(".weight"))
        return decompress(tensors, scheme, format_)

    def describe(
        self, name: str, parts: Mapping[str, TensorHeader], settings: Settings
    ) -> tuple[str, int]:
        """See :meth:`QuantizedCheckpoint.describe`."""
        scheme, format_ = settings[_SCHEMES].of(name.removesuffix(".weight"))
        shape = checked_shape(name.removesuffix(".weight"), parts, scheme, format_)
        return described(scheme.weights, format_), math.prod(shape)


CONTAINER = CompressedTensorsContainer()


def decompress(
    tensors: "Mapping[str, torch.Tensor]", scheme: "QuantizationScheme", format_: str
) -> "torch.Tensor":
    """The weights of a layer that has these parts, float32 [..., out, in], by the library's own code.

    Args:
        tensors: Its parts; those of activations are passed over.
        scheme: What the layer's numbers are.
        format_: How they lie in the parts.
    """
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    parts = {name: part for name, part in tensors.items() if name.startswith("weight")}
    args, groups = scheme.weights, parts.pop("weight_g_idx", None)
    if format_ == "nvfp4-pack-quantized":
        # Its compressor would round to bfloat16.
        packed = parts["weight_packed"]
        codes = unpack_fp4_from_uint8(packed, packed.shape[0], 2 * packed.shape[1], torch.float32)
        scale, whole = parts["weight_scale"].to(torch.float32), parts["weight_global_scale"]
        return dequantize(codes, scale, args=args, dtype=torch.float32, global_scale=whole)
    scale = parts["weight_scale"]
    if scale.dtype == torch.float8_e8m0fnu:
        scale = scale.view(torch.uint8)
    if scale.dtype != torch.uint8:
        # The library computes in the scales' dtype; products of these codes and scales are exact.
        scale = scale.to(torch.float32)
        scale = scale[:, None] if args.strategy == "channel" and scale.ndim == 1 else scale
    parts["weight_scale"] = scale
    if format_ == "pack-quantized":
        if args.symmetric:
            parts.pop("weight_zero_point", None)
        if (zeros := parts.get("weight_zero_point")) is not None and len(zeros) == 1:
            # Up to 8 outputs of 4 bits fill a single row of words, which the library cannot turn.
            parts["weight_zero_point"] = torch.cat((zeros, zeros))
        # Minus one everywhere: written before the order was known, so there is none.
        if groups is not None and not bool((groups < 0).any()):
            return _by_index(parts, args, groups.to(torch.int64))
    found = BaseCompressor.get_value_from_registry(format_).decompress(parts, scheme)
    return found["weight"].to(torch.float32)


def _by_index(
    parts: "Mapping[str, torch.Tensor]", args: "QuantizationArgs", groups: "torch.Tensor"
) -> "torch.Tensor":
    """Packed weights whose groups are not consecutive, which the library no longer reads.

    Args:
        parts: As in the module's docstring, scales in float32.
        args: What the weights are.
        groups: The group of each input, int64 [in].
    """
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    bits, shape = args.num_bits, torch.Size(parts["weight_shape"].tolist())
    weight = unpack_from_int32(parts["weight_packed"], bits, shape).to(torch.float32)
    scale, zeros = parts["weight_scale"], parts.get("weight_zero_point")
    if zeros is not None:
        zeros = unpack_from_int32(zeros, bits, torch.Size((shape[0], scale.shape[1])), packed_dim=0)
        weight -= zeros.to(torch.float32)[:, groups]
    return weight.mul_(scale[:, groups])


def checked_shape(
    layer: str, parts: Mapping[str, TensorHeader], scheme: "QuantizationScheme", format_: str
) -> tuple[int, ...]:
    """The shape of the weights that these parts are.

    Raises:
        ArtifactCorrupt: A part is missing, or not what the format wants.
    """
    from compressed_tensors.compressors import BaseCompressor

    args = scheme.weights
    names = BaseCompressor.get_value_from_registry(format_).compression_param_names(scheme)
    codes_name, *others = [name for name in names if name.startswith("weight")]
    if (codes := parts.get(codes_name)) is None:
        raise ArtifactCorrupt(f"{layer} has no {codes_name}, where its codes lie in {format_}")
    dtypes, per_element = _CODES.get(format_, (_WHOLE_CODES[args.type], 1.0))
    if format_ == "pack-quantized":
        dtypes, per_element = {"I32"}, 32 / args.num_bits
    if codes.dtype not in dtypes:
        raise ArtifactCorrupt(
            f"{layer}: {codes_name} is {codes.dtype}, where {format_} wants {_or(dtypes)}"
        )
    for name in others:
        if name not in parts:
            raise ArtifactCorrupt(f"{layer} has no {name}, which {format_} needs")
    shape = (*codes.shape[:-1], round(codes.shape[-1] * per_element))
    if format_ == "pack-quantized":
        shape = _stated_shape(layer, codes, parts["weight_shape"], args.num_bits)
    if len(shape) < 2 or 0 in shape:
        raise ArtifactCorrupt(f"{layer}: {codes_name} of the shape {list(codes.shape)}")
    scales = _scales_shape(layer, shape, args)
    _check_scale(layer, parts["weight_scale"], scales, args, format_)
    if not args.symmetric:
        zeros = parts["weight_zero_point"]
        wanted: tuple[int, ...] = scales
        if format_ == "pack-quantized" and args.strategy in ("group", "channel"):
            wanted = (*scales[:-2], -(-scales[-2] * args.num_bits // 32), scales[-1])
        check_part(layer, "weight_zero_point", zeros, wanted, {"I32", "I8", *_WHOLE_CODES["float"]})
    if "weight_global_scale" in others:
        check_part(layer, "weight_global_scale", parts["weight_global_scale"], (1,), _FLOATS)
    if "weight_g_idx" in parts:
        check_part(layer, "weight_g_idx", parts["weight_g_idx"], shape[-1:], {"I32", "I64"})
    return shape


def _stated_shape(
    layer: str, codes: TensorHeader, stated: TensorHeader, bits: int
) -> tuple[int, ...]:
    shape = read_integers(stated)
    if (*shape[:-1], -(-shape[-1] * bits // 32)) != codes.shape:
        raise ArtifactCorrupt(
            f"{layer}: weight_packed of the shape {list(codes.shape)}, where {bits} bits and "
            f"weight_shape {list(shape)} ask for {[*shape[:-1], -(-shape[-1] * bits // 32)]}"
        )
    return shape


def _scales_shape(layer: str, shape: tuple[int, ...], args: "QuantizationArgs") -> tuple[int, ...]:
    *leading, outputs, inputs = shape
    if args.strategy == "tensor":
        return (1,)
    if args.strategy == "channel":
        return (*leading, outputs, 1)
    if args.strategy == "block":
        rows, columns = args.block_structure
        return (*leading, -(-outputs // rows), -(-inputs // columns))
    if inputs % args.group_size:
        raise ArtifactCorrupt(f"{layer}: {inputs} inputs are no groups of {args.group_size}")
    return (*leading, outputs, inputs // args.group_size)


def _check_scale(
    layer: str,
    scale: TensorHeader,
    wanted: tuple[int, ...],
    args: "QuantizationArgs",
    format_: str,
) -> None:
    dtypes: frozenset[str] = _FLOATS
    if format_.startswith("mx"):
        dtypes = _BYTES
    elif format_ == "nvfp4-pack-quantized":
        dtypes = frozenset({"F8_E4M3"})
    if (stated := dtype_name(args.scale_dtype)) is not None and not format_.startswith("mx"):
        dtypes |= {stated}
    check_part(layer, "weight_scale", scale, wanted, dtypes)


def check_part(
    layer: str, name: str, part: TensorHeader, wanted: tuple[int, ...], dtypes: Collection[str]
) -> None:
    """Refuse a part of a layer that has another shape or type than is due. Raises ArtifactCorrupt."""
    # A number alone may lie as [], [1] or [1, 1], a column as [out] or [out, 1].
    if part.shape != wanted and not (
        part.count == math.prod(wanted) and (part.count == 1 or (*part.shape, 1) == wanted)
    ):
        raise ArtifactCorrupt(
            f"{layer}: {name} has the shape {list(part.shape)}, where {list(wanted)} is due"
        )
    if part.dtype not in dtypes:
        raise ArtifactCorrupt(f"{layer}: {name} is {part.dtype}, where {_or(dtypes)} is due")


def _or(names: Collection[str]) -> str:
    return " or ".join(sorted(names))
