"""Where the inverse of AWQ's scales can go: into the norm or the linear layer before.

Scaling the inputs of a linear layer by 1/s and its weights by s changes nothing, if something
before it can absorb the 1/s. What that is, the model says itself: a candidate is tried on a few
tokens with random scales, and kept if the decoder layer's output stays what it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qsweep.models.experts import ExpertLinear, attached
from qsweep.quantizers.native.graph import (
    is_linear,
    is_transposed,
    linears_of,
    raw_weight,
    tensors_of,
)
from qsweep.quantizers.native.layers import Chunk, Stage, run_layer
from qsweep.quantizers.native.names import layer_of


@dataclass(frozen=True)
class Fold:
    """What absorbs the inverse scales of a stage.

    Attributes:
        source: Name of the module inside the decoder layer.
        channels: For each input of the stage the output of ``source`` that it comes from, int64.
        offset: What a norm adds to its weight before multiplying (Gemma: 1); None for a linear.
        routers: Modules that are given the same inputs and are no linear layers, with a ``weight``
            [outputs, inputs] that must be scaled along: what sends tokens to experts.
    """

    source: str
    channels: torch.Tensor
    offset: float | None
    routers: tuple[str, ...] = ()

    def per_source(self, scales: torch.Tensor) -> torch.Tensor:
        """Scales [inputs], the same for all inputs that come from one output: geometric means."""
        count = int(self.channels.max()) + 1
        zeros = torch.zeros(count, device=scales.device)
        channels = self.channels.to(scales.device)
        total = zeros.index_add(0, channels, scales.log())
        uses = zeros.index_add(0, channels, torch.ones_like(scales))
        return (total / uses.clamp(min=1)).exp()[channels]

    def storable(self, weight: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A norm's new weight in its own dtype, and the scales [inputs] that it really applies.

        Rounding the new weight to the checkpoint's dtype is made up for exactly in the scales.
        """
        assert self.offset is not None
        old = weight.to(torch.float32) + self.offset
        new = (old / scales - self.offset).to(weight.dtype)
        applied = old / (new.to(torch.float32) + self.offset)
        sound = applied.isfinite() & (applied > 0)
        return torch.where(sound, new, weight), torch.where(sound, applied, 1.0)

    def absorb(
        self,
        source: nn.Module,
        weights: dict[str, torch.Tensor],
        scales: torch.Tensor,
        stored: torch.dtype,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Put the inverse of scales [inputs] into the source.

        Args:
            source: The module.
            weights: By name, those of linear layers, float32; a source's that is one is replaced.
            scales: As :meth:`per_source` gives them.
            stored: The dtype that the checkpoint keeps a norm's weight in.

        Returns:
            What else of the source is new, by parameter, and the scales that it really applies.
        """
        changed: dict[str, torch.Tensor] = {}
        if self.offset is None:
            weights[self.source] = self.divide_rows(weights[self.source], scales)
        else:
            norm = raw_weight(source).detach().to(stored)
            changed["weight"], scales = self.storable(norm, scales)
        bias = getattr(source, "bias", None)
        if isinstance(bias, torch.Tensor):
            changed["bias"] = self.divide_rows(bias.detach(), scales)
        return changed, scales

    def divide_rows(self, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """A source's weight [outputs, ...] or bias [outputs] with each output divided."""
        divisor = torch.ones(len(weight), device=weight.device)
        divisor[self.channels.to(weight.device)] = scales.to(weight.device)
        return weight / divisor.view(-1, *[1] * (weight.ndim - 1))


def find_folds(
    layer: nn.Module, stages: Sequence[Stage], probe: Chunk, index: int, config: Any
) -> list[Fold | None]:
    """For each stage what absorbs its inverse scales; None where nothing does.

    Stages that read one norm's output, such as a router and all experts, have the same object.

    Args:
        layer: A decoder layer.
        stages: Its stages, in running order.
        probe: A few tokens to try candidates on.
        index: The layer's number.
        config: The text model's configuration, for the numbers of heads.
    """
    sources = _sources(layer, stages, probe, index)
    before = run_layer(layer, probe, index).float()
    change = before
    if probe.hidden.is_floating_point():
        change = before - probe.hidden.to(before.device).float()
    tolerance = 1e-4 if next(layer.parameters()).dtype == torch.float32 else 2e-2
    limit = tolerance * float(change.square().mean().sqrt())

    def holds(folds: Mapping[int, Fold]) -> bool:
        with _applied(layer, [stages[number] for number in folds], list(folds.values())):
            after = run_layer(layer, probe, index).float()
        return float((after - before).square().mean().sqrt()) <= limit

    found: dict[int, Fold] = {}
    for group in _read_together(sources):
        for fold in _norm_folds(sources[group[0]], stages[group[0]].channels):
            if holds(alike := dict.fromkeys(group, fold)):
                found |= alike
                break
    for number, stage in enumerate(stages):
        if number in found or stage.experts:
            continue
        earlier = [name for other in stages[:number] for name in other.linears]
        if not probe.hidden.is_floating_point():
            # All of the model is one layer: those of the same part of it.
            earlier = [name for name in earlier if layer_of(name) == layer_of(stage.linears[0])]
        for fold in _linear_folds(layer, stage, earlier, config):
            if holds({number: fold}):
                found[number] = fold
                break
    # Within experts, which are built alike, it is the same for all of them.
    for module in {stage.experts: None for stage in stages if stage.experts}:
        own = _inside_experts(module, stages)
        if own and holds(own):
            found |= own
    return [found.get(number) for number in range(len(stages))]


def by_fold(folds: Sequence[Fold | None]) -> list[tuple[Fold, list[int]]]:
    """Each fold with the numbers of the stages that it belongs to, in running order."""
    found: dict[int, tuple[Fold, list[int]]] = {}
    for number, fold in enumerate(folds):
        if fold is not None:
            found.setdefault(id(fold), (fold, []))[1].append(number)
    return list(found.values())


@dataclass(frozen=True)
class _Source:
    """Norms whose output a stage reads, and routers that read the same."""

    norms: tuple[str, ...]
    routers: tuple[str, ...]


def _sources(layer: nn.Module, stages: Sequence[Stage], probe: Chunk, index: int) -> list[_Source]:
    outputs: dict[str, torch.Tensor] = {}
    inputs: dict[str, torch.Tensor] = {}
    handles = []
    modules = dict(layer.named_modules())
    experts = dict(attached(layer))
    for name, module in modules.items():

        def keep(_: nn.Module, args: Any, named: Any, output: Any, name: str = name) -> None:
            outputs[name] = output
            if args or named:
                inputs[name] = args[0] if args else next(iter(named.values()))

        weight = getattr(module, "weight", None)
        if name in experts or (isinstance(weight, torch.Tensor) and weight.ndim <= 2):
            handles.append(module.register_forward_hook(keep, with_kwargs=True))
    run_layer(layer, probe, index)
    for handle in handles:
        handle.remove()
    found = []
    for stage in stages:
        first = stage.linears[0].rpartition(".")[2] != "down_proj"
        given = inputs.get((stage.experts if first else "") or stage.linears[0])
        norms = tuple(
            name
            for name, output in outputs.items()
            if given is not None
            and _same(output, given)
            and getattr(modules[name], "weight", torch.empty(0)).shape == (stage.channels,)
        )
        routers = tuple(
            name
            for name, value in inputs.items()
            if norms and name not in experts and _same(value, given)
            if not is_linear(modules[name])
            and raw_weight(modules[name]).shape[1:] == (stage.channels,)
        )
        found.append(_Source(norms, routers))
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether a tensor is another one, or a view of all of it."""
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return False
    return one is other or (one.data_ptr() == other.data_ptr() and one.numel() == other.numel())


def _read_together(sources: Sequence[_Source]) -> list[list[int]]:
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, source in enumerate(sources):
        if source.norms:
            groups.setdefault(source.norms, []).append(number)
    return list(groups.values())


def _norm_folds(source: _Source, width: int) -> Iterator[Fold]:
    for name in source.norms:
        for offset in (0.0, 1.0):
            yield Fold(name, torch.arange(width), offset, source.routers)


def _inside_experts(module: str, stages: Sequence[Stage]) -> dict[int, Fold]:
    """Each expert's last layer scaled into the one before it, by the stages' numbers."""
    return {
        number: Fold(
            f"{stage.linears[0].rpartition('.')[0]}.up_proj", torch.arange(stage.channels), None
        )
        for number, stage in enumerate(stages)
        if stage.experts == module and stage.linears[0].endswith(".down_proj")
    }


def _linear_folds(
    layer: nn.Module, stage: Stage, earlier: Sequence[str], config: Any
) -> Iterator[Fold]:
    width = stage.channels
    straight = torch.arange(width)
    # As a dictionary: some configurations refuse what differs between layers.
    sizes = config.to_dict()
    heads = int(sizes.get("num_attention_heads") or 0)
    head = int(sizes.get("head_dim") or 0) or (width // heads if heads else 0)
    kv_heads = int(sizes.get("num_key_value_heads") or heads)
    modules = linears_of(layer)
    # The nearest come first: up before gate, values before keys.
    for name in reversed(earlier):
        module = modules[name]
        if isinstance(module, ExpertLinear):
            continue
        rows = raw_weight(module).shape[1 if is_transposed(module) else 0]
        if rows >= width:
            yield Fold(name, straight + (rows - width), None)
        if head and heads * head == width and rows == 3 * width:
            # One matrix for queries, keys and values, head by head (GPT-NeoX).
            yield Fold(name, straight // head * (3 * head) + 2 * head + straight % head, None)
        if head and kv_heads and kv_heads < heads and heads * head == width:
            # Each key-value head serves several query heads.
            values = kv_heads * head
            shared = straight // head // (heads // kv_heads) * head + straight % head
            if rows >= values:
                yield Fold(name, shared + (rows - values), None)


class _applied:
    """The layer with random scales folded in, of stages; on leaving, all is as it was."""

    def __init__(self, layer: nn.Module, stages: Sequence[Stage], folds: Sequence[Fold]):
        modules = dict(layer.named_modules())
        self._folds: list[tuple[Fold, nn.Module, list[nn.Module]]] = []
        for fold, numbers in by_fold(folds):
            scaled = [name for number in numbers for name in stages[number].linears]
            names = (*scaled, *fold.routers)
            self._folds.append((fold, modules[fold.source], [modules[name] for name in names]))
        touched = {id(m): m for _, source, scaled in self._folds for m in (source, *scaled)}
        self._saved = [
            (tensor, tensor.detach().clone())
            for module in touched.values()
            for tensor in tensors_of(module).values()
        ]

    def __enter__(self) -> None:
        # Powers of two, so that a fold that fits changes no bit but through a norm's offset.
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for fold, source, scaled in self._folds:
                count = int(fold.channels.max()) + 1
                by_source = torch.randint(-1, 2, (count,), generator=generator).float().exp2()
                scales = by_source[fold.channels].to(raw_weight(source).device)
                self._divide(fold, source, scales)
                for module in scaled:
                    raw_weight(module).mul_(scales[:, None] if is_transposed(module) else scales)

    def _divide(self, fold: Fold, source: nn.Module, scales: torch.Tensor) -> None:
        own = raw_weight(source)
        bias = getattr(source, "bias", None)
        if fold.offset is not None:
            own.copy_((own + fold.offset) / scales - fold.offset)
            if bias is not None:
                bias.copy_(bias / scales)
            return
        weight = own.T if is_transposed(source) else own
        weight.copy_(fold.divide_rows(weight, scales))
        if bias is not None:
            bias.copy_(fold.divide_rows(bias, scales))

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for tensor, value in self._saved:
                tensor.copy_(value)
