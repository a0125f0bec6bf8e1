"""bitsandbytes checkpoints, as transformers saves them: NF4 and FP4, and LLM.int8().

In 4 bits, a layer's ``weight`` [codes / 2, 1] packs two codes per byte (whatever dtype it is stored
as), ``weight.absmax`` has the scale of each block and ``weight.quant_map`` the 16 values. Scales that
are quantized in turn are uint8, with ``weight.nested_absmax`` and ``weight.nested_quant_map``. What is
no tensor is JSON in the bytes of ``weight.quant_state.bitsandbytes__nf4`` (or ``__fp4``). In 8 bits,
``weight`` int8 [out, in] has the largest value of each row in ``SCB``.

The library reads them (``bitsandbytes.functional``), on a CPU too.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.formats.artifact import Artifact
from qsweep.formats.checkpoint import QuantizedCheckpoint
from qsweep.formats.weights import LazyWeight, transposed
from qsweep.models.facts import CONV1D_TYPES, TensorHeader, read_config

if TYPE_CHECKING:
    import torch

_STATE = "quant_state.bitsandbytes__"
_OF_A_WEIGHT = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_OF_A_LAYER = ("SCB", "weight_format")


class BitsAndBytesContainer(QuantizedCheckpoint):
    """See the module's docstring."""

    name = "bitsandbytes"
    quant_methods = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit")
    library = "bitsandbytes"
    parts = ("",)
    optional = (*_OF_A_WEIGHT, *_OF_A_LAYER, f"{_STATE}nf4", f"{_STATE}fp4")

    def part_of(self, tensor: str) -> tuple[str, str]:
        """See :meth:`QuantizedCheckpoint.part_of`."""
        owner, found, part = tensor.rpartition(".weight.")
        if found and part in self.optional:
            return f"{owner}.weight", part
        owner, _, part = tensor.rpartition(".")
        return (f"{owner}.weight", part) if part in _OF_A_LAYER else (tensor, "")

    def is_quantized(self, parts: Mapping[str, TensorHeader]) -> bool:
        """See :meth:`QuantizedCheckpoint.is_quantized`."""
        return len(parts) > 1 or parts.get("", _NOTHING).dtype in ("I8", "U8")

    def needed(
        self, parts: Mapping[str, TensorHeader], settings: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """See :meth:`QuantizedCheckpoint.needed`."""
        if "SCB" in parts or ("" in parts and parts[""].dtype == "I8"):
            return ("", "SCB")
        nested = ("nested_absmax", "nested_quant_map")
        kind = "fp4" if f"{_STATE}fp4" in parts else "nf4"
        doubly = any(part in parts for part in nested)
        return ("", "absmax", "quant_map", f"{_STATE}{kind}", *(nested if doubly else ()))

    def dense_weights(self, artifact: Artifact, source: Path, device: str) -> dict[str, Any]:
        """See :meth:`Container.dense_weights`."""
        state = super().dense_weights(artifact, source, device)
        if read_config(source).get("model_type") not in CONV1D_TYPES:
            return state
        # transformers quantizes the layers of those models turned over, as [out, in].
        return {
            name: LazyWeight(partial(transposed, value)) if isinstance(value, LazyWeight) else value
            for name, value in state.items()
        }

    def dense(
        self, name: str, tensors: "Mapping[str, torch.Tensor]", settings: Mapping[str, Any]
    ) -> "torch.Tensor":
        """See :meth:`QuantizedCheckpoint.dense`; in 4 bits rounded to the dtype that it states."""
        import torch
        from bitsandbytes.functional import QuantState, dequantize_4bit, int8_vectorwise_dequant

        parts = dict(tensors)
        codes = parts.pop("")
        if "SCB" in parts:
            if int(parts.get("weight_format", torch.zeros(1)).item()) != 0:
                raise ValueError("stored in tiles of a GPU's, where rows are read")
            if parts["SCB"].shape != codes.shape[:1]:
                raise ValueError(
                    f"SCB of the shape {list(parts['SCB'].shape)} for weights of {list(codes.shape)}"
                )
            eight: torch.Tensor = int8_vectorwise_dequant(codes, parts["SCB"].to(torch.float32))
            return eight
        state = QuantState.from_dict(parts, device=codes.device)
        packed = codes.contiguous().view(torch.uint8).reshape(-1, 1)
        _require_blocks(packed.numel(), state)
        four: torch.Tensor = dequantize_4bit(packed, state)
        return four.to(torch.float32)

    def describe(
        self, name: str, parts: Mapping[str, TensorHeader], settings: Mapping[str, Any]
    ) -> tuple[str, int]:
        """See :meth:`QuantizedCheckpoint.describe`."""
        codes = parts[""]
        if "SCB" in parts:
            return "int8 channel", codes.count
        weights, kind = codes.bits // 4, "fp4" if f"{_STATE}fp4" in parts else "nf4"
        nested = " double" if "nested_absmax" in parts else ""
        return f"{kind} block {weights // max(parts['absmax'].count, 1)}{nested}", weights


CONTAINER = BitsAndBytesContainer()
_NOTHING = TensorHeader((), "F32", Path())


def _require_blocks(stored: int, state: Any) -> None:
    # The library trusts them: what is too short is read beyond its end.
    weights = state.shape.numel()
    blocks = -(-weights // state.blocksize)
    if stored != -(-weights // 2):
        raise ValueError(f"{stored} bytes of codes for weights of {list(state.shape)}")
    if state.absmax.numel() != blocks:
        raise ValueError(f"{state.absmax.numel()} scales, where {blocks} belong")
    inner = state.state2
    if inner is not None and inner.absmax.numel() != -(-blocks // inner.blocksize):
        raise ValueError(f"{inner.absmax.numel()} scales of scales for {blocks}")
