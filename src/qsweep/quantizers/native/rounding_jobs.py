"""Configurations of a pass that round to nearest."""

from collections.abc import Mapping, Sequence

import torch

from qsweep.formats.encoder import fused_extremes, require_finite
from qsweep.quantizers.native.jobs import Job
from qsweep.quantizers.native.layers import Layer
from qsweep.quantizers.native.stats import InputStats
from qsweep.quantizers.native.writer import CheckpointWriter


class RTNJob(Job):
    """A configuration that rounds to nearest, and waits only to know how far inputs reach."""

    def take(self, layer: Layer, stats: Sequence[InputStats]) -> None:
        """Round the linear layers of a decoder layer; ``stats`` belong to its stages."""
        self.coverage.add(layer.full_name, layer.stages, stats)
        for stage, seen in zip(layer.stages, stats, strict=True):
            weights = {name: layer.weight_of(name) for name in stage.linears}
            for _, own in self.by_scheme(layer, weights):
                named = {layer.full_name(name): weight for name, weight in own.items()}
                round_linears(self._checkpoint, named, seen.extreme)


def round_linears(
    writer: CheckpointWriter,
    weights: Mapping[str, torch.Tensor],
    inputs: torch.Tensor | None = None,
) -> None:
    """Round linear layers to nearest, of which some are fused where they run.

    Args:
        writer: Takes them.
        weights: Theirs [outputs, inputs], by name.
        inputs: How far their inputs reach [], for formats with static activations.
    """
    extremes = fused_extremes({name: weight.abs().amax() for name, weight in weights.items()})
    for name, weight in weights.items():
        require_finite(name, weight)
        writer.round_linear(name, weight, extremes[name], inputs)
