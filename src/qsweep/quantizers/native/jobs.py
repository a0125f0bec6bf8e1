"""One configuration of a pass: what it makes of each decoder layer, and what it writes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qsweep.base.errors import IncompatibleTrial, TrialFailed
from qsweep.formats.artifact import Artifact
from qsweep.formats.encoder import fused_groups
from qsweep.formats.numbers.scheme import LayerScheme, Scheme
from qsweep.formats.packing import QuantizedMatrix
from qsweep.models.source import SourceModel
from qsweep.models.spelling import Spelling
from qsweep.quantizers.grouped import GroupedOptions
from qsweep.quantizers.native.coverage import Coverage
from qsweep.quantizers.native.layers import Layer
from qsweep.quantizers.native.stats import InputStats, shared_products
from qsweep.quantizers.native.writer import CheckpointWriter, GGUFWriter, Writer


class Job:
    """One configuration and its checkpoint.

    Attributes:
        seconds: Time that was spent for it alone.
        ranges: Whether it wants to know how far inputs reach.
        smoothing: The share of an input's range that moves into weights; None where none does.
        asked: Layers that are quantized only because a rule says so, as the checkpoint calls them.
        coverage: What its experts are sent of the calibration text.
    """

    def __init__(
        self, quantizer: GroupedOptions, out: Path, model: SourceModel, spelling: Spelling
    ):
        self.seconds = 0.0
        self.coverage = Coverage()
        self.ranges = any(own.format.static for own in quantizer.every)
        self.smoothing = quantizer.format.smoothing
        self._quantizer, self._options = quantizer, quantizer.options()
        self.asked = quantizer.asked(model.facts)
        self._linears = model.facts.all_linears
        self._spelling = spelling
        _refuse_rules_for_parts(quantizer, self._linears, spelling)
        if quantizer.holder == "gguf":
            assert quantizer.format.gguf is not None
            kept = quantizer.kept_by_rules(model.facts)
            self._writer: Writer = GGUFWriter(out, model, quantizer.format.gguf, spelling, kept)
            dtype = torch.float16
        else:
            encoders = quantizer.encoders(model.facts)
            kept = quantizer.kept(model.facts)
            self._writer = CheckpointWriter(
                out, model.path, encoders, spelling, kept, rests_on_disk=model.stream is True
            )
            dtype = encoders.usual.scale_dtype
        search = self._options.get("scale_search", "range")
        # By the options that layers have.
        self._schemes = {
            own: own.scheme(dtype, own.format.searched(search)) for own in quantizer.every
        }
        self._losses: dict[str, float] = {}

    def scheme_of(self, name: str, weight: torch.Tensor) -> Scheme | None:
        """How a linear layer's weight [outputs, inputs] becomes codes; None: it stays in 16 bits.

        Args:
            name: The layer's in the model.
            weight: Its weight.
        """
        outputs, inputs = weight.shape
        stored = self._spelling.stored_in(name)
        if stored not in self._linears:
            return None
        own = self._quantizer.of_layer(stored, (outputs, inputs))
        return None if own is None else self._schemes[own]

    def by_scheme(
        self, layer: Layer, weights: Mapping[str, torch.Tensor]
    ) -> list[tuple[Scheme, dict[str, torch.Tensor]]]:
        """Those of a decoder layer's linear layers that are quantized, by how, as they are called in it."""
        found: dict[int, tuple[Scheme, dict[str, torch.Tensor]]] = {}
        for name, weight in weights.items():
            scheme = self.scheme_of(layer.full_name(name), weight)
            if scheme is not None:
                found.setdefault(id(scheme), (scheme, {}))[1][name] = weight
        return list(found.values())

    def keep_too(self, kept: Mapping[str, str]) -> None:
        """Tell why further layers stay in 16 bits, by their names in the checkpoint."""
        if isinstance(self._writer, CheckpointWriter):
            self._writer.keep_too(kept)

    def lent(self, stats: Sequence[InputStats]) -> Sequence[InputStats]:
        """What experts beside each other are quantized for, also those without a token."""
        shared = self._options.get("unseen_experts") == "shared"
        return shared_products(stats) if shared else stats

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype that the unquantized checkpoint keeps a tensor in."""
        return self._checkpoint.stored_dtype(name)

    def add_changed(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep tensors that were changed before quantization and are not written yet, by name."""
        for name, tensor in tensors.items():
            self._checkpoint.add_plain(name, tensor)

    def finish(self, model: nn.Module, common: Mapping[str, Any]) -> Artifact:
        """Write what is left of the model, and close the checkpoint; ``common`` details of a pass."""
        details = {
            **({"loss": dict(self._losses)} if self._losses else {}),
            "quantize_s": round(self.seconds, 3),
            **common,
            "torch": torch.__version__,
            **self.coverage.details(),
            **self._found(),
        }
        return self._writer.finish(model, details)

    def _found(self) -> dict[str, Any]:
        """What else is worth reporting."""
        return {}

    @property
    def _checkpoint(self) -> CheckpointWriter:
        # Of those who change more than linear layers.
        assert isinstance(self._writer, CheckpointWriter)
        return self._writer

    def _add(
        self,
        name: str,
        matrix: QuantizedMatrix,
        losses: torch.Tensor,
        inputs: torch.Tensor | None,
    ) -> None:
        """Take a finished linear layer in; ``losses`` [rows], ``inputs`` how far its inputs reach."""
        self._writer.add_linear(name, matrix, inputs if self.ranges else None)
        self._losses[name] = float(losses.sum())
        if not math.isfinite(self._losses[name]):
            # Weights and inputs were checked before.
            raise TrialFailed(
                f"{self._spelling.stored_in(name)}: its weights are so large that what rounding them "
                "costs is beyond float32; fetch the model again"
            )


def _refuse_rules_for_parts(
    quantizer: GroupedOptions, linears: Mapping[str, tuple[int, int]], spelling: Spelling
) -> None:
    # They are written one by one, by names that no rule has.
    for whole in sorted(set(spelling.split.values()) & linears.keys()):
        if quantizer.of_layer(whole, linears[whole]) not in (None, quantizer.plain):
            raise IncompatibleTrial(
                f"quant.rules: {whole} is several layers in transformers, which are written by names "
                "of their own; keep is the only rule for it"
            )


def layer_schemes(scheme: Scheme, weights: Mapping[str, torch.Tensor]) -> dict[str, LayerScheme]:
    """The scheme for each of the linear layers of one stage, of which some are fused where they run."""
    found: dict[str, LayerScheme] = {}
    for group in fused_groups(list(weights)):
        own = scheme.layers([weights[name] for name in group])
        found |= dict(zip(group, own, strict=True))
    return {name: found[name] for name in weights}
