"""How one container writes the layers that a quantizer made; each with its settings, for a whole model."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import TrialFailed
from qsweep.formats.packed import PackedContainer, kept_settings

if TYPE_CHECKING:
    import torch

    from qsweep.formats.packing import QuantizedMatrix

Parts = Mapping[str, "torch.Tensor"]
# Layers that share an input and that runtimes fuse into one, by the last part of their names: what is
# one number for a layer must be one for all of them (vLLM; the groups of llm-compressor 0.14).
_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
    "w13": ("w1", "w3"),
}
# What vLLM also runs as one, of Qwen3.5's linear attention (``packed_modules_mapping`` in its
# model_executor/models/qwen3_5.py).
_PACKED = {
    **_FUSED,
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}
_OF_EXPERT = re.compile(r"(.*\.experts)\.\d+\.[^.]+")


class Encoder(ABC):
    """Writes layers of one container.

    Attributes:
        container: The container's name.
        runtimes: What can serve the checkpoint.
        scale_dtype: What scales that are plain numbers are stored as.
        scales_whole_tensors: Whether groups' scales stand under a global one.
    """

    container: str
    runtimes: tuple[str, ...]
    scale_dtype: "torch.dtype"
    scales_whole_tensors: bool = False

    @abstractmethod
    def pack(self, matrix: "QuantizedMatrix", inputs: "torch.Tensor | None" = None) -> Parts:
        """A layer's tensors by their parts.

        Args:
            matrix: The layer [out, in].
            inputs: The largest magnitude of its inputs [], for formats with static activations.
        """

    @abstractmethod
    def round(
        self,
        weight: "torch.Tensor",
        extreme: "torch.Tensor | None" = None,
        inputs: "torch.Tensor | None" = None,
    ) -> Parts:
        """The same of a layer that is rounded to nearest.

        Args:
            weight: [out, in], in the dtype of the unquantized checkpoint.
            extreme: The largest magnitude [] of the layers that have a global scale in common;
                None: its own.
            inputs: As above.
        """

    @abstractmethod
    def settings(
        self, unquantized: Sequence[str], others: "Sequence[Differing]" = ()
    ) -> dict[str, Any]:
        """The ``quantization_config``.

        Args:
            unquantized: Linear layers that are none of its, and parts of the model that hold such.
            others: Layers that are written by other encoders; of one that several name, the first
                counts.
        """

    def loads_experts(self, runtime: str) -> bool:
        """Whether a runtime that serves the container also does where it holds experts one by one.

        Most of transformers' models keep experts in stacks, of which its quantizers know nothing: it
        loads such a checkpoint and leaves their weights random, with a warning.
        """
        return runtime == "vllm"


# A regular expression for whole names of layers, and what writes them; None: they stay as they are.
Differing = tuple[str, Encoder | None]


@dataclass(frozen=True)
class LayerEncoders:
    """What writes the layers of a checkpoint, which need not be alike.

    Attributes:
        usual: What writes most.
        others: What writes those of certain names.
        layers: The names of the model's linear layers.
        closed: Runtimes that serve the container, and do not load this model from it.
    """

    usual: Encoder
    others: tuple[Differing, ...] = ()
    layers: tuple[str, ...] = ()
    closed: frozenset[str] = frozenset()

    def of(self, layer: str) -> Encoder:
        """What writes a layer of that name in the checkpoint, one that is quantized."""
        return self._encoder_of(layer) or self.usual

    @property
    def runtimes(self) -> tuple[str, ...]:
        """What can serve the checkpoint."""
        differing = [encoder for _, encoder in self.others if encoder is not None]
        return tuple(
            name
            for name in self.usual.runtimes
            if name not in self.closed
            and all(name in encoder.runtimes for encoder in differing)
            and self._is_followed_by(name)
        )

    def settings(self, unquantized: Sequence[str], heads: Sequence[str] = ()) -> dict[str, Any]:
        """See :meth:`Encoder.settings`.

        Output heads are not quantized, whoever they are named by: ``lm_head``, which all know, and
        ``heads`` of other names, which readers of GPTQ and AWQ leave out by themselves.
        """
        named = any(re.fullmatch(expression, "lm_head") for expression, _ in self.others)
        left = ["lm_head"] if named else []
        if not isinstance(self.usual, PackedEncoder):
            left += [head for head in heads if head != "lm_head"]
        return self.usual.settings(
            [*unquantized, *(head for head in left if head not in unquantized)], self.others
        )

    def _is_followed_by(self, runtime: str) -> bool:
        """Whether a runtime reads what differs layer by layer, and can run it.

        transformers loads GPTQ through optimum, which passes ``dynamic`` over. vLLM has one matrix
        for layers that it fuses, and one kernel for all experts of a layer; of GPTQ it looks rules up
        by the name that the fused one has.
        """
        if not self.others:
            return True
        if self.usual.container == "gptq" and runtime not in ("gptqmodel", "vllm"):
            return False
        if runtime != "vllm":
            return True
        for whole, parts in run_as_one(self.layers).items():
            names = [*parts, whole] if self.usual.container == "gptq" else parts
            first, *others = (self._encoder_of(name) for name in names)
            if any(other != first for other in others):
                return False
        return True

    def _encoder_of(self, layer: str) -> Encoder | None:
        for expression, encoder in self.others:
            if re.fullmatch(expression, layer):
                return encoder
        return self.usual


@dataclass(frozen=True)
class PackedEncoder(Encoder):
    """GPTQ's and AWQ's layers.

    Attributes:
        packed: Which of the two.
        stated: The ``quantization_config``, with ``bits``, ``group_size`` and ``format``.
        sym: Whether all zero points are in the middle.
    """

    packed: PackedContainer
    stated: Mapping[str, Any]
    sym: bool

    @property
    def container(self) -> str:  # type: ignore[override]
        """See :class:`Encoder`."""
        return self.packed.name

    @property
    def runtimes(self) -> tuple[str, ...]:  # type: ignore[override]
        """See :class:`Encoder`."""
        return self.packed.runtimes(self.stated["bits"], self.stated["group_size"], self.sym)

    @property
    def scale_dtype(self) -> "torch.dtype":  # type: ignore[override]
        """See :class:`Encoder`."""
        import torch

        return torch.float16

    def pack(self, matrix: "QuantizedMatrix", inputs: "torch.Tensor | None" = None) -> Parts:
        """See :meth:`Encoder.pack`."""
        return self.packed.pack(matrix, self.stated)

    def round(
        self,
        weight: "torch.Tensor",
        extreme: "torch.Tensor | None" = None,
        inputs: "torch.Tensor | None" = None,
    ) -> Parts:
        """See :meth:`Encoder.round`; on grids that span a group's values and 0.

        The grids are GPTQ's own (Frantar et al. 2022, section 4), so that beside GPTQ only the
        rounding differs.
        """
        import torch

        from qsweep.formats.numbers.rounding import round_to_grid

        bits, group_size = self.stated["bits"], self.stated["group_size"]
        return self.pack(round_to_grid(weight.to(torch.float32), bits, group_size, self.sym))

    def settings(
        self, unquantized: Sequence[str], others: Sequence[Differing] = ()
    ) -> dict[str, Any]:
        """See :meth:`Encoder.settings`."""
        rules = [
            (expression, None if encoder is None else _bits_of(encoder))
            for expression, encoder in others
        ]
        return {**self.stated, **kept_settings(unquantized, rules)}

    def loads_experts(self, runtime: str) -> bool:
        """See :meth:`Encoder.loads_experts`."""
        return runtime in self.packed.loading_experts


def _bits_of(encoder: Encoder) -> dict[str, Any]:
    assert isinstance(encoder, PackedEncoder)
    return {name: encoder.stated[name] for name in ("bits", "group_size")}


def require_finite(layer: str, values: "torch.Tensor") -> None:
    """Refuse weights, or losses that they led to, with a NaN or an infinity. Raises TrialFailed."""
    if not bool(values.isfinite().all()):
        raise TrialFailed(
            f"{layer}: its weights are not finite (NaN or infinite); fetch the model again"
        )


def fused_extremes(own: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """By layer the largest magnitude [] in all that runtimes fuse with it, from each one's own."""
    import torch

    found: dict[str, torch.Tensor] = {}
    for group in fused_groups(list(own)):
        found |= dict.fromkeys(group, torch.stack([own[layer] for layer in group]).amax())
    return found


def fused_groups(layers: Sequence[str]) -> list[tuple[str, ...]]:
    """The layers of a model in groups that runtimes fuse; one that they do not is a group by itself.

    >>> fused_groups(["0.q_proj", "0.o_proj", "0.k_proj", "0.v_proj"])
    [('0.q_proj', '0.k_proj', '0.v_proj'), ('0.o_proj',)]
    """
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for layer in layers:
        parent, _, last = layer.rpartition(".")
        names = next((names for names in _FUSED.values() if last in names), (last,))
        groups.setdefault((parent, names), []).append(layer)
    return [tuple(group) for group in groups.values()]


def run_as_one(layers: Iterable[str]) -> dict[str, list[str]]:
    """Layers of which vLLM makes one, by its name: fused ones, and all experts of a layer."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        if (whole := name_as_one(layer)) is not None:
            found.setdefault(whole, []).append(layer)
    return found


def name_as_one(layer: str) -> str | None:
    """What vLLM calls the one that it makes of a layer and others; None of one that stays by itself.

    >>> name_as_one("0.self_attn.k_proj"), name_as_one("0.mlp.experts.3.up_proj")
    ('0.self_attn.qkv_proj', '0.mlp.experts')
    """
    if expert := _OF_EXPERT.fullmatch(layer):
        return expert[1]
    parent, _, last = layer.rpartition(".")
    whole = next((w for w, parts in _PACKED.items() if last in parts), None)
    return None if whole is None else f"{parent}.{whole}"
