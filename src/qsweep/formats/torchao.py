"""torchao checkpoints, as transformers saves them: tensor subclasses laid out in safetensors.

A tensor ``layer.weight`` is stored in parts, ``layer._weight_qdata``, ``layer._weight_scale`` and so
on; what it is (``_type``) and what is no tensor of it stands as JSON in the file's own header, under
the tensor's name. Format: ``torchao/prototype/safetensors`` in torchao 0.18, which puts it together
here and dequantizes it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.formats.checkpoint import QuantizedCheckpoint
from qsweep.formats.weights import header_metadata, quantization_settings
from qsweep.models.facts import TensorHeader

if TYPE_CHECKING:
    import torch

_PARTS = (
    *("qdata", "scale_and_zero", "per_tensor_scale", "act_per_tensor_scale", "act_pre_scale"),
    *("scale", "zero_point"),
)
_PART = re.compile(rf"^(.+)\._(.+?)_({'|'.join(_PARTS)})$")
# What each class holds.
_CLASSES = {
    "Int8Tensor": "int8",
    "IntxUnpackedToInt8Tensor": "int",
    "Int4Tensor": "int4",
    "Int4PlainInt32Tensor": "int4",
    "Int4TilePackedTo4dTensor": "int4",
    "Float8Tensor": "fp8",
    "MXTensor": "mx",
    "NVFP4Tensor": "nvfp4",
}
# How many codes of 4 bits lie in one element of those that pack them.
_PACKED = ("Int4Tensor", "Int4PlainInt32Tensor", "Int4TilePackedTo4dTensor", "NVFP4Tensor")
_PER_ELEMENT = {"U8": 2, "I8": 2, "I32": 8}
_METADATA = "metadata"


class TorchAOContainer(QuantizedCheckpoint):
    """See the module's docstring."""

    name = "torchao"
    quant_methods = ("torchao",)
    library = "torchao"
    parts = ("qdata",)
    optional = _PARTS[1:]

    def settings(self, path: Path) -> Mapping[str, Any]:
        """See :meth:`QuantizedCheckpoint.settings`; with what the files' headers say."""
        return {**quantization_settings(path), _METADATA: header_metadata(path)}

    def part_of(self, tensor: str) -> tuple[str, str]:
        """See :meth:`QuantizedCheckpoint.part_of`."""
        match = _PART.match(tensor)
        return (f"{match[1]}.{match[2]}", match[3]) if match else (tensor, "")

    def dense(
        self, name: str, tensors: "Mapping[str, torch.Tensor]", settings: Mapping[str, Any]
    ) -> "torch.Tensor":
        """See :meth:`QuantizedCheckpoint.dense`; rounded to the dtype that it states."""
        import torch
        from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

        stated = _stated(name, settings)
        if missing := sorted({*stated["_tensor_data_names"]} - tensors.keys()):
            raise ValueError(f"it has no {missing[0]}")
        layer, _, weight = name.rpartition(".")
        stored = {f"{layer}._{weight}_{part}": tensor for part, tensor in tensors.items()}
        described = {"tensor_names": json.dumps([name]), name: settings[_METADATA][name]}
        found, _ = unflatten_tensor_state_dict(stored, described)
        if type(found[name]).dequantize is torch.Tensor.dequantize:
            raise ValueError(f"torchao cannot dequantize its {stated['_type']}")
        dense: torch.Tensor = found[name].dequantize()
        return dense.to(torch.float32)

    def describe(
        self, name: str, parts: Mapping[str, TensorHeader], settings: Mapping[str, Any]
    ) -> tuple[str, int]:
        """See :meth:`QuantizedCheckpoint.describe`."""
        stated, codes = _stated(name, settings), parts["qdata"]
        number, data = _number(stated), stated.get("_data", {})
        packed = stated["_type"] in _PACKED or number == "mxfp4"
        weights = codes.count * (_PER_ELEMENT.get(codes.dtype, 1) if packed else 1)
        size = data.get("block_size")
        if isinstance(size, list):
            whole = size[-1] == codes.shape[-1]
            return f"{number} {'channel' if whole else f'g{size[-1]}'}", weights
        return number if size is None else f"{number} g{size}", weights


CONTAINER = TorchAOContainer()


def _stated(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    text = settings[_METADATA].get(name)
    if text is None:
        raise ValueError("the file's header does not say what it is")
    stated = json.loads(text)
    if not isinstance(stated, dict) or stated.get("_type") not in _CLASSES:
        raise ValueError(f"the file's header says that it is {text[:60]}")
    if not isinstance(stated.get("_tensor_data_names"), list):
        raise ValueError("the file's header does not say which parts it has")
    return stated


def _number(stated: Mapping[str, Any]) -> str:
    """What one of its codes is, such as int3 or mxfp8."""
    number, data = _CLASSES[stated["_type"]], stated.get("_data", {})
    if number == "int":
        return str(data.get("target_dtype", {}).get("_data", number))
    if number == "mx":
        return "mxfp4" if "float4" in str(data.get("elem_dtype")) else "mxfp8"
    return number
