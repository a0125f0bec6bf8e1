"""Where the inverse of AWQ's scales can go: into the norm or the linear layer before.

Scaling the inputs of a linear layer by 1/s and its weights by s changes nothing, if something
before it can absorb the 1/s. What that is, the model says itself: a candidate is tried on a few
tokens with random scales, and kept if the decoder layer's output stays what it was.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qsweep.quantizers.native.graph import is_transposed, linears_of, raw_weight
from qsweep.quantizers.native.walk import Chunk, Stage, run_layer


@dataclass(frozen=True)
class Fold:
    """What absorbs the inverse scales of a stage.

    Attributes:
        source: Name of the module inside the decoder layer.
        channels: For each input of the stage the output of ``source`` that it comes from, int64.
        offset: What a norm adds to its weight before multiplying (Gemma: 1); None for a linear.
    """

    source: str
    channels: torch.Tensor
    offset: float | None

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

    Args:
        layer: A decoder layer.
        stages: Its stages, in running order.
        probe: A few tokens to try candidates on.
        index: The layer's number.
        config: The text model's configuration, for the numbers of heads.
    """
    norms = _norms_before(layer, stages, probe, index)
    before = run_layer(layer, probe, index).float()
    change = before - probe.hidden.to(before.device).float()
    tolerance = 1e-4 if next(layer.parameters()).dtype == torch.float32 else 2e-2
    limit = tolerance * float(change.square().mean().sqrt())
    folds: list[Fold | None] = []
    for number, stage in enumerate(stages):
        earlier = [name for other in stages[:number] for name in other.linears]
        found = None
        for fold in _candidates(layer, stage, norms[number], earlier, config):
            with _applied(layer, stage, fold):
                after = run_layer(layer, probe, index).float()
            if float((after - before).square().mean().sqrt()) <= limit:
                found = fold
                break
        folds.append(found)
    return folds


def _norms_before(
    layer: nn.Module, stages: Sequence[Stage], probe: Chunk, index: int
) -> list[list[str]]:
    outputs: dict[str, torch.Tensor] = {}
    inputs: dict[str, torch.Tensor] = {}
    handles = []
    for name, module in layer.named_modules():

        def keep(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
            outputs[name] = output
            if args:
                inputs[name] = args[0]

        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim <= 2:
            handles.append(module.register_forward_hook(keep))
    run_layer(layer, probe, index)
    for handle in handles:
        handle.remove()
    modules = dict(layer.named_modules())
    return [
        [
            name
            for name, output in outputs.items()
            if output is inputs[stage.linears[0]]
            and raw_weight(modules[name]).shape == (stage.channels,)
        ]
        for stage in stages
    ]


def _candidates(
    layer: nn.Module, stage: Stage, norms: list[str], earlier: list[str], config: Any
) -> Iterator[Fold]:
    width = stage.channels
    straight = torch.arange(width)
    for name in norms:
        yield Fold(name, straight, 0.0)
        yield Fold(name, straight, 1.0)
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    head = int(getattr(config, "head_dim", 0) or 0) or (width // heads if heads else 0)
    kv_heads = int(getattr(config, "num_key_value_heads", 0) or heads)
    modules = linears_of(layer)
    # The nearest come first: up before gate, values before keys.
    for name in reversed(earlier):
        module = modules[name]
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
    """The layer with random scales folded in; on leaving, all is as it was."""

    def __init__(self, layer: nn.Module, stage: Stage, fold: Fold):
        modules = dict(layer.named_modules())
        self._source, self._fold = modules[fold.source], fold
        self._consumers = [modules[name] for name in stage.linears]
        self._saved = [
            (parameter, parameter.detach().clone())
            for module in (self._source, *self._consumers)
            for parameter in module.parameters(recurse=False)
        ]

    def __enter__(self) -> None:
        fold = self._fold
        # Powers of two, so that a fold that fits changes no bit but through a norm's offset.
        generator = torch.Generator().manual_seed(0)
        count = int(fold.channels.max()) + 1
        by_source = torch.randint(-1, 2, (count,), generator=generator).float().exp2()
        scales = by_source[fold.channels].to(self._source.weight.device)
        with torch.no_grad():
            self._divide(scales)
            for module in self._consumers:
                module.weight.mul_(scales[:, None] if is_transposed(module) else scales)

    def _divide(self, scales: torch.Tensor) -> None:
        source, fold = self._source, self._fold
        bias = getattr(source, "bias", None)
        if fold.offset is not None:
            source.weight.copy_((source.weight + fold.offset) / scales - fold.offset)
            if bias is not None:
                bias.copy_(bias / scales)
            return
        weight = source.weight.T if is_transposed(source) else source.weight
        weight.copy_(fold.divide_rows(weight, scales))
        if bias is not None:
            bias.copy_(fold.divide_rows(bias, scales))

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for parameter, value in self._saved:
                parameter.copy_(value)
