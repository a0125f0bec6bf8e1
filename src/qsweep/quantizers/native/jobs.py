"""One configuration of a pass: what it makes of each decoder layer, and what it writes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qsweep.base.errors import IncompatibleTrial, TrialFailed
from qsweep.formats.artifact import Artifact
from qsweep.formats.encoder import fused_extremes, fused_groups, require_finite
from qsweep.formats.numbers.scheme import LayerScheme, Scheme, stacked
from qsweep.formats.packing import QuantizedMatrix
from qsweep.models.source import SourceModel
from qsweep.models.spelling import Spelling
from qsweep.quantizers.grouped import GroupedOptions
from qsweep.quantizers.native import awq, columns, gptq
from qsweep.quantizers.native.coverage import Coverage
from qsweep.quantizers.native.fold import Fold, by_fold
from qsweep.quantizers.native.graph import is_transposed, raw_weight
from qsweep.quantizers.native.layers import Layer, Stage, blocks_of
from qsweep.quantizers.native.limits import LAYER_BYTES
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
            self._writer = CheckpointWriter(out, model.path, encoders, spelling, kept)
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


class GPTQJob(Job):
    """A GPTQ configuration."""

    def __init__(
        self, quantizer: GroupedOptions, out: Path, model: SourceModel, spelling: Spelling
    ):
        super().__init__(quantizer, out, model, spelling)
        self.sequential: bool = self._options["sequential"]
        self.compares: bool = self._options["gptaq_alpha"] > 0
        # GPTQ's own layout and llama.cpp's blocks are reordered group by group.
        self._free = quantizer.holder in ("compressed-tensors", "bitsandbytes")
        self._damping: dict[str, float] = {}

    def settings(self, channels: int, scheme: Scheme) -> gptq.Settings:
        """How a layer of so many inputs is treated."""
        options, group_size = self._options, scheme.groups(channels)
        static = self._free and options["act_group_aware"] and not scheme.waits
        return gptq.Settings(
            group_size=group_size,
            desc_act=options["desc_act"],
            act_group_aware=options["act_group_aware"],
            damp_percent=options["damp_percent"],
            gptaq_alpha=options["gptaq_alpha"],
            span=scheme.span(channels),
            static=static and group_size < channels,
        )

    def keep(
        self,
        name: str,
        matrix: QuantizedMatrix,
        losses: torch.Tensor,
        raised: float | None,
        inputs: torch.Tensor | None,
    ) -> None:
        """Take a finished linear layer in.

        Args:
            name: Its name in the model.
            matrix: What it became.
            losses: float32 [rows].
            raised: The share of the mean diagonal that was added in the end, if more than asked for.
            inputs: The largest magnitude of its inputs [], if that was looked for.
        """
        self._add(name, matrix, losses, inputs)
        if raised is not None:
            self._damping[name] = raised

    def _found(self) -> dict[str, Any]:
        return {"damp_raised": self._damping} if self._damping else {}


def layer_schemes(scheme: Scheme, weights: Mapping[str, torch.Tensor]) -> dict[str, LayerScheme]:
    """The scheme for each of the linear layers of one stage, of which some are fused where they run."""
    found: dict[str, LayerScheme] = {}
    for group in fused_groups(list(weights)):
        own = scheme.layers([weights[name] for name in group])
        found |= dict(zip(group, own, strict=True))
    return {name: found[name] for name in weights}


@dataclass(frozen=True)
class _Part:
    """Linear layers of one stage that some jobs quantize from the same weights.

    Attributes:
        numbers: The jobs'.
        schemes: How each makes codes of all these layers.
        layer: Their decoder layer.
        linears: The weights float32 [rows, channels], by name.
        stats: What each job's inputs are.
    """

    numbers: list[int]
    schemes: list[Scheme]
    layer: Layer
    linears: dict[str, torch.Tensor]
    stats: list[InputStats]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix that these layers are together: rows do not know of each other."""
        return (
            sum(len(weight) for weight in self.linears.values()),
            next(iter(self.linears.values())).shape[1],
        )

    @property
    def bytes(self) -> int:
        """What solving it takes: for each job weights twice, codes, and two square matrices."""
        rows, channels = self.shape
        return len(self.numbers) * channels * (9 * rows + 8 * channels)


def solve_stages(
    jobs: Sequence[GPTQJob],
    layers: Sequence[Layer],
    stages: Sequence[Stage],
    stats: Sequence[Sequence[InputStats]],
) -> list[dict[str, QuantizedMatrix]]:
    """Quantize the linear layers of stages that run side by side, for every job that can hold them.

    Args:
        jobs: The configurations.
        layers: Each job's decoder layer before it is quantized; several may share the same object.
        stages: Which of its linear layers.
        stats: What each job's inputs are, by stage; several may share the same objects.

    Returns:
        For each job the matrices, by the linear layers' names inside the decoder layer.
    """
    results: list[dict[str, QuantizedMatrix]] = [{} for _ in jobs]
    waiting: list[_Part] = []

    def solve() -> None:
        for number, matrices in _solve(jobs, waiting):
            results[number] |= matrices
        waiting.clear()

    for job, layer, own in zip(jobs, layers, stats, strict=True):
        job.coverage.add(layer.full_name, stages, own)
    stats = [job.lent(own) for job, own in zip(jobs, stats, strict=True)]
    for position, stage in enumerate(stages):
        for part in _parts(jobs, layers, stage, [own[position] for own in stats]):
            # Matrices of one shape are solved in one loop over their columns, as many as fit.
            full = sum(one.bytes for one in (*waiting, part)) > LAYER_BYTES
            if waiting and (full or part.shape != waiting[0].shape):
                solve()
            waiting.append(part)
    solve()
    return results


def _parts(
    jobs: Sequence[GPTQJob], layers: Sequence[Layer], stage: Stage, stats: Sequence[InputStats]
) -> list[_Part]:
    weights: dict[int, dict[str, torch.Tensor]] = {}
    alike: dict[tuple[int, tuple[str, ...]], list[tuple[int, Scheme]]] = {}
    for number, (job, layer) in enumerate(zip(jobs, layers, strict=True)):
        if id(layer) not in weights:
            weights[id(layer)] = {name: layer.weight_of(name) for name in stage.linears}
        for scheme, own in job.by_scheme(layer, weights[id(layer)]):
            alike.setdefault((id(layer), tuple(own)), []).append((number, scheme))
    return [
        _Part(
            [number for number, _ in those],
            [scheme for _, scheme in those],
            layers[those[0][0]],
            {name: weights[which][name] for name in names},
            [stats[number] for number, _ in those],
        )
        for (which, names), those in alike.items()
    ]


def _solve(
    jobs: Sequence[GPTQJob], parts: Sequence[_Part]
) -> Iterator[tuple[int, dict[str, QuantizedMatrix]]]:
    """By job's number the matrices; the parts are of one shape."""
    targets, factors, settings, schemes = [], [], [], []
    for part in parts:
        for target, factor, setting in _problems([jobs[n] for n in part.numbers], part):
            targets.append(target)
            factors.append(factor)
            settings.append(setting)
        # Global scales are those of the weights themselves, wherever they move to.
        schemes += [
            stacked(list(layer_schemes(scheme, part.linears).values())) for scheme in part.schemes
        ]
    solved = iter(columns.solve(targets, factors, settings, schemes))
    used = iter(zip(factors, settings, strict=True))
    for part in parts:
        for number, seen in zip(part.numbers, part.stats, strict=True):
            (matrix, losses), (factor, asked) = next(solved), next(used)
            raised = None if factor.damp == asked.damp_percent else factor.damp
            matrices, start = {}, 0
            for name, weight in part.linears.items():
                rows = slice(start, start + len(weight))
                own, full = matrix.rows(rows), part.layer.full_name(name)
                jobs[number].keep(full, own, losses[rows], raised, seen.extreme)
                matrices[name] = own
                start += len(weight)
            yield number, matrices


def _problems(
    jobs: Sequence[GPTQJob], part: _Part
) -> Iterator[tuple[torch.Tensor, gptq.Factor, gptq.Settings]]:
    joined = torch.cat(list(part.linears.values()))
    # Who orders the columns of the same inputs alike shares a factor, which is as large as their
    # Gram matrix.
    factors: dict[tuple[Any, ...], gptq.Factor] = {}
    for job, scheme, seen in zip(jobs, part.schemes, part.stats, strict=True):
        one = job.settings(joined.shape[1], scheme)
        one = replace(one, damp_percent=one.damp_percent + seen.doubt)
        whole = one.desc_act or one.static
        aware = one.act_group_aware and not whole
        grouped = (one.group_size, one.span) if aware else None
        key = id(seen), whole, grouped, one.damp_percent
        if key not in factors:
            factors[key] = gptq.factorize(seen.gram, one, seen.name)
        factor = factors[key]
        target = (
            joined
            if seen.cross is None
            else gptq.retarget(joined, seen.gram, seen.cross, factor, one.gptaq_alpha)
        )
        yield target, factor, one


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


def _by_scheme(
    names: Sequence[str], weights: Mapping[str, torch.Tensor], schemes: Mapping[str, Scheme]
) -> list[tuple[Scheme, dict[str, torch.Tensor]]]:
    found: dict[int, tuple[Scheme, dict[str, torch.Tensor]]] = {}
    for name in names:
        if (scheme := schemes.get(name)) is not None:
            found.setdefault(id(scheme), (scheme, {}))[1][name] = weights[name]
    return list(found.values())


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
        schemes = {name: scheme for scheme, own in self.by_scheme(layer, weights) for name in own}
        applied: list[torch.Tensor | None] = [None] * len(layer.stages)
        for fold, numbers in by_fold(folds):
            inputs = [
                awq.Shared(list(own.values()), stats[n], scheme)
                for n in numbers
                for scheme, own in _by_scheme(layer.stages[n].linears, weights, schemes)
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
            for scheme, chosen in _by_scheme(stage.linears, weights, schemes):
                for name, own in layer_schemes(scheme, chosen).items():
                    clip = self._options["clip"]
                    matrix, losses = awq.quantize(weights[name], gram, own, clip=clip)
                    self._add(layer.full_name(name), matrix, losses, extreme)
            for name in stage.linears:
                if name not in schemes:
                    # Scales went into it all the same, from before or from behind.
                    self._keep(layer.full_name(name), modules[name], weights[name])

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
