"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): range moved from activations into weights.

An input channel that reaches far makes the scale of all others coarse. It is divided by s, the
weights that it meets are multiplied by it, and what comes before absorbs the division, found as for
AWQ (:mod:`qsweep.quantizers.native.fold`). The model computes what it did.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from qsweep.quantizers.native.awq import scaled_gram
from qsweep.quantizers.native.fold import Fold, by_fold
from qsweep.quantizers.native.graph import linears_of, raw_weight, set_weight, tensors_of
from qsweep.quantizers.native.layers import Layer, StageInputs
from qsweep.quantizers.native.stats import InputStats


@dataclass(frozen=True)
class Smoothed:
    """A decoder layer after its inputs were smoothed.

    Attributes:
        layer: The layer, a copy.
        stats: What goes into its stages now.
        scales: By a stage's first linear layer, what its inputs were divided by, float32 [channels].
        changed: By their names in the model, all tensors that may differ from the model's.
    """

    layer: Layer
    stats: list[InputStats]
    scales: Mapping[str, torch.Tensor]
    changed: Mapping[str, torch.Tensor]

    def inputs(self, plain: StageInputs | None) -> StageInputs | None:
        """What would go into the stages if nothing was quantized, divided likewise."""
        if plain is None:
            return None
        return {
            name: [
                replace(part, values=part.values / self.scales[name].to(part.values))
                if name in self.scales
                else part
                for part in parts
            ]
            for name, parts in plain.items()
        }


def smooth(
    layer: Layer,
    stats: Sequence[InputStats],
    folds: Sequence[Fold | None],
    share: float,
    stored_dtype: Callable[[str], torch.dtype],
) -> Smoothed:
    """Divide each input channel j by s_j = max|X_j|^share / max|W_j|^(1 - share).

    Args:
        layer: A decoder layer.
        stats: What goes into its stages, with ranges.
        folds: What absorbs the inverse of a stage's scales; a stage without keeps its inputs.
        share: How much of the range moves.
        stored_dtype: The dtype that the checkpoint keeps a tensor in, by its name.
    """
    module = copy.deepcopy(layer.module)
    modules = dict(module.named_modules())
    scales: dict[str, torch.Tensor] = {}
    seen = list(stats)
    touched = set(linears_of(module))
    # The module's own dtype would round them before they are quantized.
    weights = {name: layer.weight_of(name) for name in touched}
    for fold, numbers in by_fold(folds):
        members = [layer.stages[number] for number in numbers]
        meets = [weights[name] for stage in members for name in stage.linears]
        reach = torch.stack([stats[number].largest for number in numbers]).amax(0)
        wanted = fold.per_source(_scales(meets, reach, share))
        source, stored = (
            modules[fold.source],
            stored_dtype(f"{layer.full_name(fold.source)}.weight"),
        )
        new, applied = fold.absorb(source, weights, wanted, stored)
        for part, tensor in new.items():
            tensors_of(source)[part].data.copy_(tensor)
        touched |= {fold.source, *fold.routers}
        for router in fold.routers:
            raw_weight(modules[router]).data.mul_(applied)
        for stage, number in zip(members, numbers, strict=True):
            for name in stage.linears:
                weights[name] = weights[name] * applied
            scales[stage.linears[0]] = applied
            seen[number] = _divided(stats[number], applied)
    for name, weight in weights.items():
        set_weight(modules[name], weight)
    changed = {
        f"{layer.full_name(name)}.{part}": tensor.detach()
        for name in touched
        for part, tensor in tensors_of(modules[name]).items()
    }
    return Smoothed(replace(layer, module=module, weights=weights), seen, scales, changed)


def _divided(inputs: InputStats, scales: torch.Tensor) -> InputStats:
    """The statistics of inputs that are divided by ``scales`` [channels]."""
    return replace(
        inputs,
        gram=scaled_gram(inputs.gram, scales) if inputs.products else inputs.gram,
        magnitude=inputs.magnitude / scales if inputs.channels else inputs.magnitude,
        largest=inputs.largest / scales,
    )


def _scales(weights: Sequence[torch.Tensor], reach: torch.Tensor, share: float) -> torch.Tensor:
    meets = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).clamp(min=1e-5)
    scales = reach.pow(share) / meets.pow(1 - share)
    # What never fires, or meets nothing, stays.
    return torch.where(reach > 0, scales, 1.0).clamp(min=1e-5)
