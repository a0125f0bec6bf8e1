"""AWQ configurations of a pass."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qsweep.formats.numbers.scheme import Scheme
from qsweep.models.source import SourceModel
from qsweep.models.spelling import Spelling
from qsweep.quantizers.grouped import GroupedOptions
from qsweep.quantizers.native import awq
from qsweep.quantizers.native.fold import Fold, by_fold
from qsweep.quantizers.native.graph import is_transposed, raw_weight
from qsweep.quantizers.native.jobs import Job, layer_schemes
from qsweep.quantizers.native.layers import Layer, Stage, blocks_of
from qsweep.quantizers.native.stats import InputStats


class AWQJob(Job):
    """An AWQ configuration."""

    def __init__(
        self, quantizer: GroupedOptions, out: Path, model: SourceModel, spelling: Spelling
    ):
        super().__init__(quantizer, out, model, spelling)
        self._scaling: dict[str, dict[str, Any]] = {}

    def take(self, layer: Layer, stats: Sequence[InputStats], folds: Sequence[Fold | None]) -> None:
        """Scale, clip and round the linear layers of a decoder layer.

        ``stats`` and ``folds`` belong to the layer's stages, in their order.
        """
        self.coverage.add(layer.full_name, layer.stages, stats)
        each = iter(stats)
        stats = [
            one
            for block in blocks_of(layer.stages)
            for one in self.lent([next(each) for _ in block])
        ]
        modules = dict(layer.module.named_modules())
        weights = {name: layer.weight_of(name) for s in layer.stages for name in s.linears}
        applied: list[torch.Tensor | None] = [None] * len(layer.stages)
        for fold, numbers in by_fold(folds):
            inputs = [
                awq.Shared(list(own.values()), stats[n], scheme)
                for n in numbers
                for scheme, own in self._of_stage(layer, layer.stages[n], weights)
            ]
            if not inputs:
                continue
            scales, found = awq.search_scales(inputs)
            scales = self._fold(layer, fold, modules, weights, fold.per_source(scales))
            self._scaling[layer.full_name(layer.stages[numbers[0]].linears[0])] = {
                "into": fold.source,
                **found,
            }
            for number in numbers:
                for name in layer.stages[number].linears:
                    weights[name] *= scales
                applied[number] = scales
        # Only now: a later stage's scales change the rows of the layer that absorbs them.
        for stage, seen, found_scales in zip(layer.stages, stats, applied, strict=True):
            gram, extreme = seen.damped, seen.extreme
            if found_scales is not None:
                gram = awq.scaled_gram(gram, found_scales)
                extreme = seen.scaled_extreme(found_scales)
            kept = dict.fromkeys(stage.linears)
            for scheme, chosen in self._of_stage(layer, stage, weights):
                for name, own in layer_schemes(scheme, chosen).items():
                    clip = self._options["clip"]
                    matrix, losses = awq.quantize(weights[name], gram, own, clip=clip)
                    self._add(layer.full_name(name), matrix, losses, extreme)
                    del kept[name]
            for name in kept:
                # Scales went into it all the same, from before or from behind.
                self._keep(layer.full_name(name), modules[name], weights[name])

    def _of_stage(
        self, layer: Layer, stage: Stage, weights: Mapping[str, torch.Tensor]
    ) -> list[tuple[Scheme, dict[str, torch.Tensor]]]:
        return self.by_scheme(layer, {name: weights[name] for name in stage.linears})

    def _found(self) -> dict[str, Any]:
        return {"scaling": self._scaling}

    def _keep(self, name: str, module: nn.Module, weight: torch.Tensor) -> None:
        stored = weight.T if is_transposed(module) else weight
        self._checkpoint.add_plain(f"{name}.weight", stored.contiguous())

    def _fold(
        self,
        layer: Layer,
        fold: Fold,
        modules: Mapping[str, nn.Module],
        weights: dict[str, torch.Tensor],
        scales: torch.Tensor,
    ) -> torch.Tensor:
        # Put the inverse into its source; returns the scales that the source really applies.
        name = layer.full_name(fold.source)
        stored = self._checkpoint.stored_dtype(f"{name}.weight")
        changed, scales = fold.absorb(modules[fold.source], weights, scales, stored)
        for part, tensor in changed.items():
            self._checkpoint.add_plain(f"{name}.{part}", tensor)
        for router in fold.routers:
            weight = raw_weight(modules[router]).detach() * scales
            self._checkpoint.add_plain(f"{layer.full_name(router)}.weight", weight)
        return scales
