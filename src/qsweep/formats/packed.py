"""What GPTQ and AWQ checkpoints have in common: layers of ``qweight``, ``qzeros`` and ``scales``."""

import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.artifact import Artifact
from qsweep.formats.checkpoint import QuantizedCheckpoint, Settings
from qsweep.formats.packed_settings import Stated, stated_of
from qsweep.formats.weights import LazyWeight, transposed
from qsweep.models.facts import (
    CONV1D_TYPES,
    TensorHeader,
    read_config,
    read_outline,
    read_tensors,
)
from qsweep.models.safetensors_header import DTYPE_BITS

if TYPE_CHECKING:
    import torch

    from qsweep.formats.packing import QuantizedMatrix

# By part of a layer: its shape, and the bits of one element.
Shapes = Mapping[str, tuple[tuple[int, ...], int]]
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
        codes: What the part that holds a layer's codes may be called.
        loading_experts: Runtimes that load a mixture's experts one by one. transformers knows them as
            stacks, which it leaves random.
    """

    timed_by = "gptqmodel"
    loading_experts = ("gptqmodel", "vllm")
    group_sizes: tuple[int, ...]
    packed_sides: str
    holds_conv1d: bool = True
    codes: tuple[str, ...]

    @abstractmethod
    def pack(
        self, matrix: "QuantizedMatrix", settings: Mapping[str, Any]
    ) -> "dict[str, torch.Tensor]":
        """Pack a layer as quantizers write it.

        Args:
            matrix: A matrix [out, in].
            settings: The ``quantization_config``.

        Returns:
            The layer's tensors by their parts, shaped as the container's module says.
        """

    @abstractmethod
    def layer(self, name: str, shapes: Shapes, settings: Mapping[str, Any]) -> "PackedLayer":
        """What the shapes of a layer's parts say of it.

        Args:
            name: The layer's.
            shapes: By part: a shape, and the bits of an element.
            settings: The ``quantization_config``.

        Raises:
            ArtifactCorrupt: They contradict each other, or what is stated.
        """

    @abstractmethod
    def unpack(
        self, layer: "PackedLayer", tensors: "Mapping[str, torch.Tensor]", settings: Settings
    ) -> "torch.Tensor":
        """The weights of a layer of which these are the parts, in float32 [out, in]."""

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
        state = _without_zero_biases(super().dense_weights(artifact, source, device), source)
        if read_config(source).get("model_type") in CONV1D_TYPES:
            # Those models want the weights of their layers as [in, out].
            unpacked = {n: value for n, value in state.items() if isinstance(value, LazyWeight)}
            state |= {n: LazyWeight(partial(transposed, value)) for n, value in unpacked.items()}
        return _fuse(state, source)

    def is_quantized(self, parts: Mapping[str, TensorHeader]) -> bool:
        """See :meth:`QuantizedCheckpoint.is_quantized`."""
        return any(codes in parts for codes in self.codes)

    def stored_as(
        self, artifact: Artifact, source: Path, stored: Collection[str]
    ) -> dict[str, tuple[str, ...]]:
        """See :meth:`Container.stored_as`: what transformers has fused lies in parts."""
        original = read_outline(source)
        layers = (n.removesuffix(".weight") for n in stored if n not in original)
        fused = filter(None, map(fused_with, layers))
        return {f"{whole}.weight": tuple(f"{p}.weight" for p in parts) for whole, parts in fused}

    def dense(
        self, name: str, tensors: "Mapping[str, torch.Tensor]", settings: Settings
    ) -> "torch.Tensor":
        """See :meth:`QuantizedCheckpoint.dense`."""
        shapes = {part: (tuple(t.shape), 8 * t.element_size()) for part, t in tensors.items()}
        return self.unpack(self._layer(name, shapes, settings), tensors, settings)

    def describe(
        self, name: str, parts: Mapping[str, TensorHeader], settings: Settings
    ) -> tuple[str, int]:
        """See :meth:`QuantizedCheckpoint.describe`."""
        shapes = {part: (header.shape, DTYPE_BITS[header.dtype]) for part, header in parts.items()}
        layer = self._layer(name, shapes, settings)
        group = "channel" if layer.groups == 1 else f"g{layer.group_size}"
        order = " act-order" if layer.stated.desc_act and layer.groups > 1 else ""
        sym = "sym" if layer.stated.sym else "asym"
        return f"int{layer.bits} {group} {sym}{order}", layer.inputs * layer.outputs

    def _layer(self, name: str, shapes: Shapes, settings: Settings) -> "PackedLayer":
        layer = name.removesuffix(".weight")
        for part, (shape, _) in shapes.items():
            sides = 1 if part in ("g_idx", "workspace", "Workspace") else 2
            if len(shape) != sides or 0 in shape:
                raise ArtifactCorrupt(f"{layer}: {part} of the shape {list(shape)}")
        return self.layer(layer, shapes, settings)


@dataclass(frozen=True)
class PackedLayer:
    """What a packed layer is: how many outputs and inputs, how its codes are grouped.

    Attributes:
        name: What it is called.
        outputs: Rows of its weight.
        inputs: Columns.
        bits: Bits per code.
        groups: How many scales a row has.
        group_size: Inputs per group, where groups are consecutive; a last one may be smaller.
        stated: What the configuration says of it.
    """

    name: str
    outputs: int
    inputs: int
    bits: int
    groups: int
    group_size: int
    stated: Stated


def layer_of(
    name: str,
    outputs: int,
    groups: int,
    settings: Settings,
    shapes: Shapes,
    expected: Callable[[int], tuple[int, Mapping[str, tuple[int, int]]]],
) -> PackedLayer:
    """The layer whose parts have the shapes that its bits, of those stated, give.

    Args:
        name: The layer's.
        outputs: Rows of its weight.
        groups: How many scales a row has.
        settings: The ``quantization_config``.
        shapes: As they are.
        expected: Given the bits per code, how many inputs there are, and shapes as they should be.

    Raises:
        ArtifactCorrupt: No number of bits that is stated gives these shapes.
    """
    stated = stated_of(settings, name)
    for bits in stated.bits:
        inputs, wanted = expected(bits)
        if all(shapes[part][0] == shape for part, shape in wanted.items()):
            break
    else:
        bits = stated.bits[0]
        _, wanted = expected(bits)
        odd = next(part for part, shape in wanted.items() if shapes[part][0] != shape)
        raise ArtifactCorrupt(
            f"{name}: {odd} has the shape {list(shapes[odd][0])}, where {bits} bits, as stated, "
            f"and its other tensors ask for {list(wanted[odd])}"
        )
    sizes = (inputs if size == -1 else size for size in stated.group_sizes)
    size = next((n for n in sizes if n > 0 and -(-inputs // n) == groups), None)
    if size is None and inputs % groups:
        raise ArtifactCorrupt(f"{name}: {groups} scales a row do not divide its {inputs} inputs")
    return PackedLayer(name, outputs, inputs, bits, groups, size or inputs // groups, stated)


def kept_settings(
    names: Sequence[str], rules: Sequence[tuple[str, Mapping[str, Any] | None]] = ()
) -> dict[str, Any]:
    """What a ``quantization_config`` says of linear layers that are not quantized as most are.

    ``modules_to_not_convert`` is what transformers and vLLM read of AWQ. Of GPTQ, GPTQModel and vLLM
    read ``dynamic``: the first of its expressions that matches counts, and one that begins with a
    minus leaves layers alone. In memory, a name may be longer at its begin.

    Args:
        names: Layers that are not quantized, or modules with all that is below them.
        rules: What differs for layers, by regular expressions for whole names; None: they are not
            quantized.
    """
    kept_ones = sorted(rf"-:^(.*\.)?{re.escape(name)}(\.|$)" for name in names)
    dynamic: dict[str, Any] = {expression: {} for expression in kept_ones}
    for expression, differing in rules:
        sign = "-" if differing is None else "+"
        dynamic[rf"{sign}:^(.*\.)?{expression}$"] = dict(differing or {})
    kept = {"modules_to_not_convert": list(names)} if names else {}
    return kept | ({"dynamic": dynamic} if dynamic else {})


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


def _without_zero_biases(state: dict[str, Any], source: Path) -> dict[str, Any]:
    # AutoGPTQ gave every layer a bias, of zeros where the model has none.
    # One of an expert whose checkpoint holds stacks is none of those.
    original = read_outline(source)
    packed = [
        name.removesuffix(".weight")
        for name, w in state.items()
        if isinstance(w, LazyWeight) and name in original
    ]
    for name in (f"{layer}.bias" for layer in packed):
        if name in state and name not in original and not state[name][...].any():
            del state[name]
    return state


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


def _concatenate(parts: list[Any]) -> "torch.Tensor":
    import torch

    return torch.cat([part[...] for part in parts])
