"""Fine-grained FP8, as DeepSeek and Qwen release their models and transformers saves them.

A matrix [out, in] has its codes under its own name, ``weight`` in float8 (e4m3), and beside it
``weight_scale_inv``, which is what codes are *multiplied* by: one number per block of
``weight_block_size`` (128 x 128; those at the edges are cut off where sizes do not divide), per
channel [out, 1], or one for the tensor. Experts may be stacked: ``gate_up_proj`` [experts, …] beside
``gate_up_proj_scale_inv``. Scales are float32, bfloat16, or powers of two (``ue8m0``: float8_e8m0, or
bytes that are the exponent plus 127). DeepSeek-V4 calls them ``scale`` and has experts in FP4: two
codes (e2m1) per byte, a scale per 32 of them. fbgemm writes ``weight_scale`` [out, 1], AutoFP8 and
vLLM one for the tensor, and for an FP8 KV cache ``self_attn.k_scale`` and the like (vLLM's
``model_loader/weight_utils.py``, ``maybe_remap_kv_scale_name``), which are no weights.

Formats: ``integrations/finegrained_fp8.py`` and ``fbgemm_fp8.py`` in transformers 5.18, whose
``Fp8Dequantize`` reads them here.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.formats.activations import LayerActivations, rounding
from qsweep.formats.checkpoint import QuantizedCheckpoint, Settings
from qsweep.formats.compressed_tensors import ACTIVATIONS
from qsweep.models.facts import TensorHeader

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationArgs

# Beside the codes: "weight_scale_inv" belongs to "weight", and ".scale" to the ".weight" beside it.
_BESIDE = re.compile(r"^(.+?)([._])(activation_scale|input_scale|scale_inv|scale)$")
_FLOATS = {"F8_E4M3": "fp8", "F8_E5M2": "fp8_e5m2"}
_PACKED = ("I8", "U8")
_PARTS = {"scale_inv": "scale", "scale": "scale"}
# Of a layer's inputs: they lie beside its codes and count with them.
_OF_INPUTS = ("input_scale", "activation_scale")


class FP8Container(QuantizedCheckpoint):
    """See the module's docstring."""

    name = "fp8"
    quant_methods = ("fp8", "mxfp8", "fbgemm_fp8")
    parts = ("", "scale")
    optional = ("activation_scale",)
    activations = (*ACTIVATIONS, *_OF_INPUTS, "act_scale", "kv_scale", "prob_scale")

    def part_of(self, tensor: str) -> tuple[str, str]:
        """See :meth:`QuantizedCheckpoint.part_of`."""
        elsewhere = self._scales_activations(tensor) and not tensor.endswith(_OF_INPUTS)
        if elsewhere or (match := _BESIDE.match(tensor)) is None:
            return tensor, ""
        owner, joint, part = match.groups()
        # What activations are scaled by is no part of a weight, and is passed over.
        return owner if joint == "_" else f"{owner}.weight", _PARTS.get(part, "activation_scale")

    def is_quantized(self, parts: Mapping[str, TensorHeader]) -> bool:
        """See :meth:`QuantizedCheckpoint.is_quantized`."""
        return "" in parts and parts[""].dtype in (*_FLOATS, *_PACKED)

    def dense(
        self, name: str, tensors: "Mapping[str, torch.Tensor]", settings: Mapping[str, Any]
    ) -> "torch.Tensor":
        """See :meth:`QuantizedCheckpoint.dense`."""
        scale = tensors["scale"]
        if settings.get("quant_method") == "fbgemm_fp8" and scale.ndim == 3 and scale.shape[2] == 1:
            # Experts that are stored as [in, out], with a scale of each output.
            scale = scale.transpose(1, 2)
        return dequantize(tensors[""], scale, settings.get("weight_block_size"))

    def quantizes_activations(self, path: Path) -> bool:
        """See :meth:`Container.quantizes_activations`; each of its methods does."""
        return True

    def layer_activations(self, path: Path) -> dict[str, LayerActivations]:
        """See :meth:`Container.layer_activations`."""
        args, more = _inputs(self.settings(path))

        def read(layer: str, stored: "Mapping[str, torch.Tensor]") -> LayerActivations:
            scale = stored.get("input_scale", stored.get("activation_scale"))
            parts = {} if scale is None else {"input_scale": scale}
            return LayerActivations(inputs=rounding(layer, "input", args, parts, **more))

        return self.activations_by_layer(path, read)

    def describe(
        self, name: str, parts: Mapping[str, TensorHeader], settings: Mapping[str, Any]
    ) -> tuple[str, int]:
        """See :meth:`QuantizedCheckpoint.describe`."""
        codes, scale = parts[""], parts["scale"]
        packed = codes.dtype in _PACKED
        shape = (*codes.shape[:-1], codes.shape[-1] * (2 if packed else 1))
        number = "fp4" if packed else _FLOATS[codes.dtype]
        return f"{number} {_granularity(shape, scale.shape, settings)}", math.prod(shape)


CONTAINER = FP8Container()


def _inputs(settings: Settings) -> tuple["QuantizationArgs", dict[str, Any]]:
    """What inputs of layers are served as, and further attributes of their ``Rounding``.

    Dynamically in groups of as many channels as a block of weights has columns (DeepSeek's
    ``act_quant``; with scales of powers of two where the weights' are), per token where weights have
    no blocks; fbgemm cuts them off first (``quantize_fp8_per_row``'s upper bound).
    """
    from compressed_tensors.quantization import QuantizationArgs

    stated: dict[str, Any] = {"num_bits": 8, "type": "float", "dynamic": True}
    more: dict[str, Any] = {}
    method, block = settings.get("quant_method"), settings.get("weight_block_size")
    if method == "fbgemm_fp8":
        stated["strategy"] = "token"
        more["limit"] = float(settings.get("activation_scale_ub") or 1200.0)
    elif method == "mxfp8":
        stated |= {"group_size": 32, "scale_dtype": "torch.uint8"}
    elif settings.get("activation_scheme") == "static":
        stated["dynamic"] = False
    elif block:
        stated["group_size"] = int(block[1])
        more["power_of_two"] = settings.get("scale_fmt") == "ue8m0"
    else:
        stated["strategy"] = "token"
    return QuantizationArgs.model_validate(stated), more


def dequantize(
    codes: "torch.Tensor", scale: "torch.Tensor", block_size: Sequence[int] | None = None
) -> "torch.Tensor":
    """Codes times scales.

    Args:
        codes: float8 [..., out, in], or two FP4 codes per byte, [..., out, in / 2].
        scale: Of each block, [..., ceil(out / rows), ceil(in / columns)]; of each channel; of all.
        block_size: (rows, columns) as configured; what the scales' shape contradicts is not used.

    Returns:
        float32 [..., out, in].

    Raises:
        ValueError: The scales fit no blocks of the codes.
    """
    import torch
    from torch.nn.functional import pad
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    per_byte = 2 if codes.dtype in (torch.int8, torch.uint8) else 1
    *leading, rows, stored = codes.shape
    columns = stored * per_byte
    grid, block = _blocks((*leading, rows, columns), scale.shape, block_size)
    exponents = scale.dtype == torch.uint8
    scale = (scale.to(torch.float32) - 127).exp2() if exponents else scale.to(torch.float32)
    scale = scale.reshape(-1, *grid).expand(math.prod(leading), *grid)
    # transformers wants whole blocks: those at the edges are filled up, and cut off again.
    missing = (grid[0] * block[0] - rows, (grid[1] * block[1] - columns) // per_byte)
    if any(missing):
        codes = pad(codes.view(torch.uint8), (0, missing[1], 0, missing[0])).view(codes.dtype)
    codes = codes.view(torch.int8) if per_byte == 2 else codes
    found: dict[str, Any] = Fp8Dequantize(None).convert(
        {"weight$": codes, "weight_scale_inv": scale}
    )
    dense: torch.Tensor = found["weight"][..., :rows, :columns]
    return dense


def _blocks(
    shape: Sequence[int], scales: Sequence[int], block_size: Sequence[int] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """How many blocks there are of a matrix of ``shape``, and their size."""
    *leading, rows, columns = shape
    count = math.prod(scales)
    if count == 1 or (len(leading) == 1 and count == leading[0] and set(scales[1:]) <= {1}):
        return (1, 1), (rows, columns)
    if list(scales[:-2]) == leading and len(scales) == len(shape):
        grid = (scales[-2], scales[-1])
        if block_size is not None and list(grid) == [
            -(-size // block) for size, block in zip((rows, columns), block_size, strict=True)
        ]:
            return grid, (block_size[0], block_size[1])
        if all(grid) and rows % grid[0] == 0 and columns % grid[1] == 0:
            return grid, (rows // grid[0], columns // grid[1])
    stated = "" if block_size is None else f" in blocks of {'x'.join(map(str, block_size))}"
    raise ValueError(f"scales of the shape {list(scales)} for weights of {list(shape)}{stated}")


def _granularity(shape: Sequence[int], scales: Sequence[int], settings: Mapping[str, Any]) -> str:
    if settings.get("quant_method") == "fbgemm_fp8":
        return "channel"
    grid, block = _blocks(shape, scales, settings.get("weight_block_size"))
    if grid == (1, 1):
        return "tensor"
    return "channel" if block == (1, shape[-1]) else f"block {block[0]}x{block[1]}"
