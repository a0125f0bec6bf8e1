"""What GPTQ and AWQ checkpoints have in common: layers of ``qweight``, ``qzeros`` and ``scales``."""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.formats.artifact import Artifact
from qsweep.formats.checkpoint import QuantizedCheckpoint
from qsweep.formats.weights import LazyWeight
from qsweep.models.facts import (
    CONV1D_TYPES,
    TensorHeader,
    read_config,
    read_outline,
    read_tensors,
)

if TYPE_CHECKING:
    import torch

    from qsweep.formats.packing import Grid

# Group sizes of Marlin, through which vLLM serves both formats.
MARLIN_GROUP_SIZES = (-1, 32, 64, 128)
# What a packed layer consists of; its weight has in_features x out_features elements.
PARTS = ("qweight", "qzeros", "scales", "g_idx")

# Projections that some models have fused and GPTQModel splits, with their parts in order.
_FUSED = {"gate_up_proj": ("gate_proj", "up_proj")}


class PackedContainer(QuantizedCheckpoint):
    """A checkpoint whose linear layers are packed into words of 32 bits, or stay in 16 bits.

    Attributes:
        group_sizes: Those that GPTQModel's portable kernel runs.
        packed_sides: What of a matrix must be a multiple of 32, in words.
        holds_conv1d: Whether there are checkpoints of models that store weights transposed.
    """

    timed_by = "gptqmodel"
    group_sizes: tuple[int, ...]
    packed_sides: str
    holds_conv1d: bool = True

    @abstractmethod
    def pack(self, grid: "Grid", settings: Mapping[str, Any]) -> "dict[str, torch.Tensor]":
        """Pack a layer.

        Args:
            grid: A matrix [out, in].
            settings: The ``quantization_config``.

        Returns:
            The layer's tensors by their parts, shaped as the container's module says.
        """

    @abstractmethod
    def unpack(self, settings: Mapping[str, Any], **tensors: "torch.Tensor") -> "Grid":
        """The inverse of :meth:`pack`; gives a matrix [out, in]."""

    @abstractmethod
    def packs(self, shape: tuple[int, int]) -> bool:
        """Whether a matrix of (outputs, inputs) fills whole words."""

    @abstractmethod
    def runtimes(self, bits: int, group_size: int, sym: bool) -> tuple[str, ...]:
        """What can serve such a checkpoint, by name.

        From the tables of GPTQModel 7.6 (``SUPPORTS_BITS`` and the like of its kernels),
        transformers 5 and vLLM (its auto_gptq and auto_awq configurations, as of 2026).
        ``transformers`` reads both formats through GPTQModel, and GPTQ only with optimum as well.
        """

    def served_by(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """See :meth:`Container.served_by`."""
        bits, group, sym = (options.get(name) for name in ("bits", "group_size", "sym"))
        if type(bits) is not int or type(group) is not int:
            return ()
        return self.runtimes(bits, group, sym is not False)

    def fits(self, group_size: int, shape: tuple[int, int]) -> bool:
        """Whether a linear layer of (outputs, inputs) can be packed with that group size."""
        return self.packs(shape) and (group_size == -1 or shape[1] % group_size == 0)

    def kept_layers(self, group_size: int, linears: Mapping[str, tuple[int, int]]) -> list[str]:
        """Names of linear layers whose shape the format cannot hold, and that stay in 16 bits."""
        return [name for name, shape in linears.items() if not self.fits(group_size, shape)]

    def dense_weights(self, artifact: Artifact, source: Path, device: str) -> dict[str, Any]:
        """See :meth:`Container.dense_weights`."""
        state = super().dense_weights(artifact, source, device)
        if read_config(source).get("model_type") in CONV1D_TYPES:
            # Those models want the weights of their layers as [in, out].
            unpacked = {n: value for n, value in state.items() if isinstance(value, LazyWeight)}
            state |= {n: LazyWeight(partial(_transposed, value)) for n, value in unpacked.items()}
        return _fuse(state, source)

    def dense(
        self, name: str, tensors: "Mapping[str, torch.Tensor]", settings: Mapping[str, Any]
    ) -> "torch.Tensor":
        """See :meth:`QuantizedCheckpoint.dense`."""
        import torch

        return self.unpack(settings, **tensors).dense(torch.float32)

    def describe(
        self, name: str, parts: Mapping[str, TensorHeader], settings: Mapping[str, Any]
    ) -> tuple[str, int]:
        """See :meth:`QuantizedCheckpoint.describe`."""
        groups, outputs = parts["scales"].shape
        inputs = parts.get("g_idx", parts["qweight"]).shape[0]
        group = "channel" if groups == 1 else f"g{inputs // groups}"
        return f"int{settings['bits']} {group}", inputs * outputs


def kept_settings(names: Sequence[str]) -> dict[str, Any]:
    """What a ``quantization_config`` says of linear layers that are not quantized.

    ``modules_to_not_convert`` is what transformers and vLLM read of AWQ, a ``dynamic`` rule that
    begins with a minus what GPTQModel and vLLM read of GPTQ. ``names`` may also be those of modules
    with all that is below them; in memory, a name may be longer at its begin.
    """
    if not names:
        return {}
    return {
        "modules_to_not_convert": list(names),
        "dynamic": {rf"-:^(.*\.)?{re.escape(name)}(\.|$)": {} for name in names},
    }


def is_split(source: Path, out: Path) -> bool:
    """Whether a checkpoint has in parts what its source, and so transformers, has fused."""
    original, saved = read_tensors(source), read_tensors(out)
    layers = (name.removesuffix(".qweight") for name in saved if name.endswith(".qweight"))
    found = (fused_with(layer) for layer in layers)
    return any(fused is not None and f"{fused[0]}.weight" in original for fused in found)


def fused_with(layer: str) -> tuple[str, tuple[str, ...]] | None:
    """The fused projection that a layer may be a part of, and all its parts in order."""
    head, _, last = layer.rpartition(".")
    for whole, parts in _FUSED.items():
        if last in parts:
            return f"{head}.{whole}", tuple(f"{head}.{part}" for part in parts)
    return None


def _fuse(state: dict[str, Any], source: Path) -> dict[str, Any]:
    # GPTQModel splits projections that Phi-3 has fused; transformers wants them whole.
    original = read_outline(source)
    joined: dict[str, Any] = {}
    for name, value in state.items():
        fused = fused_with(name.removesuffix(".weight"))
        if fused is None or f"{fused[0]}.weight" not in original:
            joined[name] = value
            continue
        parts = [state[f"{part}.weight"] for part in fused[1]]
        joined[f"{fused[0]}.weight"] = LazyWeight(partial(_concatenate, parts))
    return joined


def _transposed(weight: LazyWeight) -> "torch.Tensor":
    return weight[...].T


def _concatenate(parts: list[Any]) -> "torch.Tensor":
    import torch

    return torch.cat([part[...] for part in parts])
