"""ModelOpt checkpoints (NVIDIA's "unified" export), as TensorRT-LLM, vLLM and SGLang serve them.

``quantization_config`` in config.json, or ``quantization`` in ``hf_quant_config.json``, names the
numbers of all layers, ``quant_algo``; what a layer is shows in its tensors (ModelOpt 0.47,
``torch/export/quant_utils.py``: ``to_quantized_weight``, ``pack_int4_in_uint8``; vLLM's
``quantization/modelopt.py``):

- ``weight`` float8 or int8 [out, in], ``weight_scale`` float32 of the tensor [], the channel [out] or
  the block [blocks, 1, blocks, 1]; ``weight_scale`` uint8 [out, in / 32] of MXFP8, exponents + 127.
- ``weight`` uint8 [out, in / 2], two e2m1 numbers per byte, the lower half first, with
  ``weight_scale`` float8 [out, in / 16] and ``weight_scale_2`` (NVFP4: weight = code * (scale *
  scale_2)) or with ``weight_scale`` uint8 [out, in / 32] (MXFP4).
- ``weight`` uint8 [out / 2, in], two signed int4 of neighbouring *outputs* per byte, with
  ``weight_scale`` [out, in / group_size].

``pre_quant_scale`` [in] is what a layer's inputs are multiplied by; here its weights are instead.
``input_scale``, ``k_scale`` and ``v_scale`` are of activations.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.activations import LayerActivations, NotSimulated, rounding
from qsweep.formats.checkpoint import QuantizedCheckpoint, Settings
from qsweep.formats.compressed_schemes import described, dtype_name, served_as
from qsweep.formats.compressed_tensors import (
    ACTIVATIONS,
    check_part,
    checked_shape,
    decompress,
)
from qsweep.formats.weights import quantization_settings
from qsweep.models.facts import TensorHeader, read_tensors

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationArgs

_MIXED = "MIXED_PRECISION"
_FP8 = {"num_bits": 8, "type": "float"}
_MX = {"type": "float", "group_size": 32, "scale_dtype": "torch.uint8", "dynamic": True}
_NVFP4 = {
    **{"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
    **{"scale_dtype": "torch.float8_e4m3fn", "dynamic": "local"},
}
# By ``quant_algo``: what activations are served as, in compressed-tensors' words; None: as they are.
_SERVED: dict[str, dict[str, Any] | None] = {
    "FP8": _FP8,
    "FP8_PER_CHANNEL_PER_TOKEN": {**_FP8, "strategy": "token", "dynamic": True},
    "FP8_PB_WO": None,
    "NVFP4": _NVFP4,
    "NVFP4_AWQ": _NVFP4,
    "W4A16_NVFP4": None,
    "W4A8_NVFP4_FP8": _FP8,
    "MXFP4": {**_MX, "num_bits": 4},
    "W4A8_MXFP4_FP8": _FP8,
    "MXFP8": {**_MX, "num_bits": 8},
    "W4A16_AWQ": None,
    "W8A16": None,
    "W8A8_SQ_PER_CHANNEL": {"num_bits": 8, "type": "int"},
    _MIXED: None,
}
_FP8_STATIC = "fp8 per tensor, static"
_KV_CACHE = {"FP8": _FP8_STATIC, "INT8": "int8 per tensor, static", "NVFP4": "nvfp4, dynamic"}
_NOT_READ = {
    "NVFP4_SVD": "it adds a matrix of low rank to each layer",
    "W4A8_AWQ": "its weights are rounded a second time, to FP8, while it runs",
}
_FLOATS = frozenset({"F32", "F16", "BF16"})
_FLOAT8 = "F8_E4M3"
# What it calls scales of a parameter that is no module's ``weight``: of Llama 4's and gpt-oss's experts.
_STACK_SCALE = "_weight_scale"


class ModelOptContainer(QuantizedCheckpoint):
    """See the module's docstring."""

    name = "modelopt"
    quant_methods = ("modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed")
    parts = ("weight", "weight_scale")
    optional = ("weight_scale_2", "pre_quant_scale")
    activations = (*ACTIVATIONS, "k_bias", "v_bias")

    def refusal(self, path: Path, settings: Settings) -> str | None:
        """See :meth:`Container.refusal`."""
        for name in _algorithms(settings):
            if name in _NOT_READ:
                return f"quant_algo {name}: {_NOT_READ[name]}"
            if name not in _SERVED:
                return f"quant_algo {name[:40]!r}; read are {', '.join(sorted(_SERVED))}"
        if (stack := _quantized_stack(path)) is not None:
            return f"experts that are quantized as a stack, first {stack}; read are single ones"
        return None

    def settings(self, path: Path) -> Settings:
        """See :meth:`QuantizedCheckpoint.settings`."""
        stated = quantization_settings(path)
        if (why := self.refusal(path, stated)) is not None:
            raise ArtifactCorrupt(f"{path}: {why}")
        return stated

    def details(self, path: Path) -> dict[str, Any]:
        """See :meth:`Container.details`."""
        stated = self.settings(path)
        activations = [_activations(name) for name in _algorithms(stated)]
        found = {
            "activations": served_as(activations),
            "kv_cache": _KV_CACHE.get(_kv_cache(stated), _kv_cache(stated)),
        }
        return {name: text for name, text in found.items() if text}

    def quantizes_activations(self, path: Path) -> bool:
        """See :meth:`Container.quantizes_activations`."""
        return any(_SERVED[name] for name in _algorithms(self.settings(path)))

    def layer_activations(self, path: Path) -> dict[str, LayerActivations]:
        """See :meth:`Container.layer_activations`."""
        settings = self.settings(path)

        def read(layer: str, stored: "Mapping[str, torch.Tensor]") -> LayerActivations:
            args = _activations(_algorithm_of(layer, settings))
            if args is None:
                return LayerActivations()
            parts = dict(stored)
            if args.strategy == "tensor_group" and "input_scale" in parts:
                # The largest magnitude through that of the largest code and scale, where
                # compressed-tensors stores its inverse.
                parts["input_global_scale"] = 1 / parts["input_scale"].float()
            before = parts.get("pre_quant_scale")
            factor = None if before is None else before.float()
            return LayerActivations(inputs=rounding(layer, "input", args, parts, factor=factor))

        return self.activations_by_layer(path, read, ("pre_quant_scale",))

    def quantizes_weights(self, settings: Settings) -> bool:
        """See :meth:`QuantizedCheckpoint.quantizes_weights`."""
        return bool(_algorithms(settings))

    def is_quantized(self, parts: Mapping[str, TensorHeader]) -> bool:
        """See :meth:`QuantizedCheckpoint.is_quantized`."""
        weight = parts.get("weight")
        return "weight_scale" in parts or (weight is not None and weight.dtype not in _FLOATS)

    def dense(
        self, name: str, tensors: "Mapping[str, torch.Tensor]", settings: Settings
    ) -> "torch.Tensor":
        """See :meth:`QuantizedCheckpoint.dense`."""
        import torch

        headers = {
            part: TensorHeader(tuple(tensor.shape), dtype_name(tensor.dtype) or "", Path())
            for part, tensor in tensors.items()
        }
        weight = _numbers(name.removesuffix(".weight"), headers).dense(tensors)
        if (before := tensors.get("pre_quant_scale")) is not None:
            weight *= before.to(torch.float32)
        return weight

    def describe(
        self, name: str, parts: Mapping[str, TensorHeader], settings: Settings
    ) -> tuple[str, int]:
        """See :meth:`QuantizedCheckpoint.describe`."""
        layer = name.removesuffix(".weight")
        found = _numbers(layer, parts)
        if "pre_quant_scale" in parts:
            inputs = found.shape[-1:]
            check_part(layer, "pre_quant_scale", parts["pre_quant_scale"], inputs, _FLOATS)
        return described(found.args, found.format), math.prod(found.shape)


CONTAINER = ModelOptContainer()


@dataclass(frozen=True)
class _Numbers:
    """What a layer's weights are.

    Attributes:
        args: In compressed-tensors' words.
        format: As compressed-tensors calls the same layout; None for ModelOpt's own of int4.
        shape: (out, in).
    """

    args: "QuantizationArgs"
    format: str | None
    shape: tuple[int, ...]

    def dense(self, tensors: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        """float32 [out, in] of these parts, without the factors of the inputs."""
        import torch
        from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
        from compressed_tensors.quantization import QuantizationScheme
        from compressed_tensors.quantization.lifecycle.forward import dequantize

        weight, scale = tensors["weight"], tensors["weight_scale"]
        if self.format == "nvfp4-pack-quantized":
            codes = unpack_fp4_from_uint8(weight, *self.shape, dtype=torch.float32)
            scale = scale.to(torch.float32) * tensors["weight_scale_2"].to(torch.float32)
        elif self.format is None:
            # The sign's bit counts -8: what is above 7 is 16 more than it stands for.
            pairs = torch.stack((weight & 15, weight >> 4), 1).reshape(self.shape).to(torch.int8)
            codes, scale = pairs - ((pairs > 7) * 16).to(torch.int8), scale.to(torch.float32)
        else:
            if self.args.strategy == "block":
                scale = scale.reshape(scale.shape[0], scale.shape[2])
            codes = "weight_packed" if weight.dtype == torch.uint8 else "weight"
            scheme = QuantizationScheme(targets=["Linear"], weights=self.args)
            return decompress({codes: weight, "weight_scale": scale}, scheme, self.format)
        return dequantize(codes, scale, args=self.args, dtype=torch.float32)


def _numbers(layer: str, parts: Mapping[str, TensorHeader]) -> _Numbers:
    """What a layer is by its parts' types and shapes. Raises ArtifactCorrupt if they are no layer."""
    from compressed_tensors.quantization import QuantizationScheme

    weight, scale = parts["weight"], parts["weight_scale"]
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise ArtifactCorrupt(f"{layer}: weight of the shape {list(weight.shape)}")
    if weight.dtype == "U8" and scale.dtype not in (_FLOAT8, "U8"):
        return _int4(layer, weight, scale)
    if weight.dtype == "U8" and scale.dtype == _FLOAT8:
        shape: tuple[int, ...] = (weight.shape[0], 2 * weight.shape[1])
        check_part(layer, "weight_scale", scale, (shape[0], -(-shape[1] // 16)), {_FLOAT8})
        if (second := parts.get("weight_scale_2")) is None:
            raise ArtifactCorrupt(f"{layer} has no weight_scale_2")
        check_part(layer, "weight_scale_2", second, (1,), _FLOATS)
        return _Numbers(_args(4, "float", group_size=16), "nvfp4-pack-quantized", shape)
    stated, format_, codes = _by_dtype(layer, weight, scale)
    if stated.strategy == "block":
        scale = TensorHeader((scale.shape[0], scale.shape[2]), scale.dtype, scale.file)
    scheme = QuantizationScheme(targets=["Linear"], weights=stated)
    shape = checked_shape(layer, {codes: weight, "weight_scale": scale}, scheme, format_)
    return _Numbers(stated, format_, shape)


def _by_dtype(
    layer: str, weight: TensorHeader, scale: TensorHeader
) -> tuple["QuantizationArgs", str, str]:
    # What the numbers are, compressed-tensors' name of the layout, and of the codes.
    exponents = scale.dtype == "U8"
    if weight.dtype == "U8":
        return _args(4, "float", group_size=32), "mxfp4-pack-quantized", "weight_packed"
    if weight.dtype == _FLOAT8 and exponents:
        return _args(8, "float", group_size=32), "mxfp8-quantized", "weight"
    if weight.dtype not in (_FLOAT8, "I8"):
        raise ArtifactCorrupt(f"{layer}: weight is {weight.dtype}, which has no scales")
    kind, format_ = (
        ("float", "float-quantized") if weight.dtype == _FLOAT8 else ("int", "int-quantized")
    )
    if scale.count == 1:
        return _args(8, kind), format_, "weight"
    if len(scale.shape) == 4 and scale.shape[1] == scale.shape[3] == 1:
        block = [-(-weight.shape[0] // scale.shape[0]), -(-weight.shape[1] // scale.shape[2])]
        return _args(8, kind, strategy="block", block_structure=block), format_, "weight"
    return _args(8, kind, group_size=-1), format_, "weight"


def _int4(layer: str, weight: TensorHeader, scale: TensorHeader) -> _Numbers:
    shape = (2 * weight.shape[0], weight.shape[1])
    groups = scale.shape[-1] if scale.shape else 0
    if groups == 0 or shape[1] % groups:
        raise ArtifactCorrupt(f"{layer}: {groups} scales a row do not divide its {shape[1]} inputs")
    check_part(layer, "weight_scale", scale, (shape[0], groups), _FLOATS)
    return _Numbers(_args(4, "int", group_size=shape[1] // groups), None, shape)


def _args(bits: int, kind: str, **more: Any) -> "QuantizationArgs":
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs.model_validate({"num_bits": bits, "type": kind, **more})


def _algorithms(settings: Settings) -> list[str]:
    stated = _stated(settings)
    layers = stated.get("quantized_layers")
    each = layers.values() if isinstance(layers, Mapping) else ()
    named = [
        stated.get("quant_algo"),
        *(x.get("quant_algo") for x in each if isinstance(x, Mapping)),
    ]
    return list(dict.fromkeys(str(name).upper() for name in named if name))


def _algorithm_of(layer: str, settings: Settings) -> str:
    # What is stated of the layer itself, else of all.
    stated = _stated(settings)
    layers = stated.get("quantized_layers")
    own = layers.get(layer) if isinstance(layers, Mapping) else None
    named = own.get("quant_algo") if isinstance(own, Mapping) else None
    name = str(named or stated.get("quant_algo") or "").upper()
    if name == _MIXED:
        raise NotSimulated(f"{layer}: quantized_layers says not what its activations are served as")
    return name


def _activations(algorithm: str) -> "QuantizationArgs | None":
    from compressed_tensors.quantization import QuantizationArgs

    stated = _SERVED.get(algorithm)
    return None if stated is None else QuantizationArgs.model_validate(stated)


def _kv_cache(settings: Settings) -> str:
    stated = _stated(settings)
    scheme = stated.get("kv_cache_scheme")
    if isinstance(scheme, Mapping):
        return f"{'FP' if scheme.get('type') == 'float' else 'INT'}{scheme.get('num_bits')}"
    return str(stated.get("kv_cache_quant_algo") or scheme or "").upper()


def _stated(settings: Settings) -> Mapping[str, Any]:
    # Earlier versions wrote into config.json what stands in hf_quant_config.json.
    inner = settings.get("quantization")
    return inner if isinstance(inner, Mapping) else settings


def _quantized_stack(path: Path) -> str | None:
    """The name of the first stack of experts that has scales, if there is one."""
    tensors = read_tensors(path)
    stacks = (name.removesuffix(_STACK_SCALE) for name in sorted(tensors))
    return next(
        (name for name in stacks if name + _STACK_SCALE in tensors and name in tensors), None
    )
