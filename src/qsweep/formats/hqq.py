"""HQQ checkpoints, as transformers 4 saved them in safetensors.

A layer has its codes in ``W_q``, in words as its ``packing`` says, ``scale`` and ``zero`` of each
group, and what else is known of it as a tensor each: ``nbits``, ``group_size``, ``axis`` (0 or 1),
``shape``; text is a tensor of character codes. weight = (code - zero) * scale, in the dtype of the
scales. Format: ``HQQLinear.state_dict`` in hqq 0.2.8, whose ``Quantizer`` unpacks it here.

hqq's own reader of these tensors evaluates what stands in ``unpack_view_dtype`` and
``compute_dtype`` as Python: it is not used, and those two are looked up instead. hqq itself saves a
pickle, ``qmodel.pt``, which is refused. transformers 5.18 neither writes nor loads HQQ.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.checkpoint import QuantizedCheckpoint
from qsweep.formats.weights import open_weights, quantization_settings
from qsweep.models.facts import TensorHeader

if TYPE_CHECKING:
    import torch

_NUMBERS = ("nbits", "group_size", "axis", "view_as_float", "quant_scale", "quant_zero")
_TEXTS = ("packing", "unpack_view_dtype", "compute_dtype")
_IGNORED = (
    *("offload_meta", "encoded_state_dict", "stores_quant_config"),
    *("channel_wise", "optimize", "round_zero"),
)
_STATED = "stated"
_DTYPES = ("uint8", "int32", "float16", "bfloat16", "float32")


class HQQContainer(QuantizedCheckpoint):
    """See the module's docstring."""

    name = "hqq"
    quant_methods = ("hqq",)
    library = "hqq"
    parts = ("W_q", "scale", "zero", "shape", "nbits", "axis", "packing")
    optional = (*_NUMBERS, *_TEXTS, *_IGNORED)

    def refusal(self, path: Path, settings: Mapping[str, Any]) -> str | None:
        """See :meth:`Container.refusal`."""
        if (path / "qmodel.pt").exists() and not any(path.glob("*.safetensors")):
            return "hqq saved it as a pickle (qmodel.pt), which can run code and is never loaded"
        return None

    def settings(self, path: Path) -> Mapping[str, Any]:
        """See :meth:`QuantizedCheckpoint.settings`; with what each layer says of itself."""
        stated: dict[str, dict[str, Any]] = {}
        for full, file in open_weights(path).items():
            name, part = self.part_of(full)
            if part in ("shape", *_NUMBERS, *_TEXTS) and len(file.get_slice(full).get_shape()) < 2:
                try:
                    value = _value(part, file.get_tensor(full))
                except (ValueError, OverflowError, TypeError) as error:
                    raise ArtifactCorrupt(f"{path}: {full} cannot be read ({error})") from error
                stated.setdefault(name, {})[part] = value
        return {**quantization_settings(path), _STATED: stated}

    def dense(
        self, name: str, tensors: "Mapping[str, torch.Tensor]", settings: Mapping[str, Any]
    ) -> "torch.Tensor":
        """See :meth:`QuantizedCheckpoint.dense`; rounded to the dtype of its scales."""
        import torch
        from hqq.core.quantize import Quantizer

        stated, scale = settings[_STATED][name], tensors["scale"]
        if stated.get("quant_scale") or stated.get("quant_zero"):
            raise ValueError("its scales are quantized in turn, which is not read")
        if stated["packing"] not in Quantizer.unpack:
            raise ValueError(f"packed as {stated['packing'][:40]!r}, which hqq does not know")
        meta = {
            **stated,
            "group_size": stated.get("group_size"),
            "view_as_float": bool(stated.get("view_as_float")),
            "unpack_view_dtype": Quantizer.unpack_view_dtype[stated["packing"]],
            "compute_dtype": scale.dtype,
            "scale": scale,
            "zero": tensors["zero"],
        }
        found: torch.Tensor = Quantizer.dequantize(tensors["W_q"], meta)
        return found.to(torch.float32)

    def describe(
        self, name: str, parts: Mapping[str, TensorHeader], settings: Mapping[str, Any]
    ) -> tuple[str, int]:
        """See :meth:`QuantizedCheckpoint.describe`."""
        stated = settings[_STATED][name]
        rows, columns = stated["shape"]
        group = stated.get("group_size")
        return f"int{stated['nbits']:g} {f'g{group}' if group else 'channel'}", rows * columns


CONTAINER = HQQContainer()


def _value(part: str, tensor: "torch.Tensor") -> Any:
    """A tensor as the value that it stands for. Raises ValueError, OverflowError or TypeError."""
    import torch

    if part == "shape":
        return torch.Size(tensor.tolist())
    if part in _NUMBERS:
        number = tensor.reshape(-1)[:1].sum().item()
        return int(number) if number == int(number) else number
    text = "".join(chr(code) for code in tensor.tolist())
    if part == "packing":
        return text
    kind = text.removeprefix("torch.")
    if kind not in _DTYPES:
        raise ValueError(f"it says {text[:40]!r}, which is no dtype")
    return getattr(torch, kind)
