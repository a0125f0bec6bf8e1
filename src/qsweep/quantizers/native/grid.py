"""The pass over a model that quantizes a whole grid of configurations, layer by layer."""

import copy
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from qsweep.base.errors import ConfigError
from qsweep.base.progress import Progress
from qsweep.formats.packing import QuantizedMatrix
from qsweep.models.facts import read_tensors
from qsweep.models.layer_list import CannotStream
from qsweep.models.room import stream_of
from qsweep.models.source import SourceModel
from qsweep.models.spelling import spelling_of
from qsweep.models.streaming import holding
from qsweep.quantizers.grouped import GroupedOptions
from qsweep.quantizers.native.awq_jobs import AWQJob
from qsweep.quantizers.native.capture import capture, rest_on_disk, resting_device
from qsweep.quantizers.native.coverage import Coverage
from qsweep.quantizers.native.fold import Fold, find_folds
from qsweep.quantizers.native.gptq_jobs import GPTQJob, solve_stages
from qsweep.quantizers.native.graph import (
    find_decoder,
    linears_of,
    require_linear,
    set_weight,
)
from qsweep.quantizers.native.jobs import Job
from qsweep.quantizers.native.layers import Chunk, Layer, Stage, StageInputs, blocks_of, run_layer
from qsweep.quantizers.native.lockstep import in_lockstep
from qsweep.quantizers.native.memory import Room
from qsweep.quantizers.native.network import load_network, not_run_as_linear, require_finite_layer
from qsweep.quantizers.native.output_hessians import output_hessians
from qsweep.quantizers.native.precision import calibration_dtype
from qsweep.quantizers.native.rounding_jobs import RTNJob
from qsweep.quantizers.native.smoothing import Smoothed, smooth
from qsweep.quantizers.native.stages import find_stages
from qsweep.quantizers.native.stats import InputStats
from qsweep.quantizers.native.walk import advance, rounds_needed
from qsweep.quantizers.protocol import PassResult, SharedPass
from qsweep.text.calibration import CalibrationTokens

_Asked = tuple[Sequence[Stage], Sequence[InputStats]]
_Matrices = dict[str, QuantizedMatrix]
_JOBS: dict[str, type[Job]] = {"gptq": GPTQJob, "awq": AWQJob, "rtn": RTNJob}


# Gradients are off throughout: one configuration's walk goes on where another's has just left off.
@torch.no_grad()
def run(
    model: SourceModel,
    calibration: CalibrationTokens | None,
    configurations: Sequence[tuple[SharedPass, Path]],
    progress: Progress,
    *,
    importance: bool = False,
) -> PassResult:
    """See :func:`qsweep.quantizers.native.quantize_grid`.

    With ``importance`` there may be no configuration.
    """
    try:
        return _run(model, calibration, configurations, progress, importance=importance)
    except CannotStream:
        if model.stream is True:
            raise
    # Before anything was written. What was loaded is a cycle of references.
    gc.collect()
    whole = replace(model, stream=False)
    return _run(whole, calibration, configurations, progress, importance=importance)


def _run(
    model: SourceModel,
    calibration: CalibrationTokens | None,
    configurations: Sequence[tuple[SharedPass, Path]],
    progress: Progress,
    *,
    importance: bool,
) -> PassResult:
    if calibration is None or not calibration.samples:
        raise ConfigError(
            "gptq, awq and importance matrices need calibration text; choose one with "
            "calibration=NAME"
        )
    for quantizer, _ in configurations:
        quantizer.check(model.facts)
    started = time.perf_counter()
    progress("load", None)
    quantizers = [quantizer for quantizer, _ in configurations]
    network = load_network(model, beside=_bytes_beside(model, calibration, quantizers))
    streamed = stream_of(network) is not None
    model = replace(model, stream=streamed)
    spelling = spelling_of(network, read_tensors(model.path))
    jobs = [
        _JOBS[quantizer.method](cast(GroupedOptions, quantizer), out, model, spelling)
        for quantizer, out in configurations
    ]
    find_decoder(network)  # refuses by name what keeps experts in a way of its own
    found = [spelling.layer(name) for name in linears_of(network)]
    others = not_run_as_linear(model, spelling, linears_of(network))
    for job in jobs:
        require_linear(job.asked, found)
        job.keep_too(others)
        job.coverage.all_tokens = calibration.all_experts
    wanted = [
        name for name in linears_of(network) if spelling.stored_in(name) in model.facts.linears
    ]
    weighing = [job for job in jobs if isinstance(job, GPTQJob) and job.weighs_outputs]
    if weighing:
        if streamed:
            raise CannotStream(
                "model.stream=true: gptq_output_hessian walks backwards through all of the model; "
                "leave one of the two out"
            )
        felt = output_hessians(network, calibration.samples, model.device, wanted, progress)
        for job in weighing:
            job.felt = felt
    progress("embed", None)
    decoder, chunks, probe = capture(network, calibration.samples, model.device, wanted)
    # What is kept of a layer's inputs is as much as eight texts where feed-forward is four times wide.
    kept = 8 if any(isinstance(job, GPTQJob) and job.compares for job in jobs) else 0
    walking = sum(isinstance(job, GPTQJob) and job.sequential for job in jobs)
    place = resting_device(chunks, 2 + walking + kept, model.device)
    chunks = [replace(chunk, hidden=chunk.hidden.to(place)) for chunk in chunks]
    if streamed:
        chunks = rest_on_disk(chunks, 2 + walking)
    config = network.config.get_text_config()
    text = _CalibrationText(
        jobs,
        chunks,
        probe,
        config,
        spelling.stored_in,
        importance=importance,
        all_tokens=calibration.all_experts,
    )
    count = len(decoder.layers)
    for index, module in enumerate(decoder.layers):
        progress("quantize" if jobs else "importance matrix", index / count)
        with holding(network, index, ahead=text.room.reads_ahead(module)):
            require_finite_layer(module, partial(decoder.full_name, index), spelling)
            module.to(model.device)
            text.advance(index, module, partial(decoder.full_name, index))
            module.to("cpu")
    progress("write", None)
    spent = time.perf_counter() - started
    shared_s = spent - sum(job.seconds for job in jobs)
    common = {
        "shared_s": round(shared_s, 3),
        "calibration_tokens": sum(len(sample) for sample in calibration.samples),
        "calibration_dtype": calibration_dtype(network, model.device, exact=probe.exact),
    }
    artifacts = [job.finish(network, common) for job in jobs]
    spelt = {spelling.layer(name): values for name, values in text.importance.items()}
    matrix = {name: values for name, values in spelt.items() if name in model.facts.all_linears}
    return PassResult(artifacts, matrix or None, shared_s, text.coverage.details())


def _bytes_beside(
    model: SourceModel, calibration: CalibrationTokens, quantizers: Sequence[SharedPass]
) -> int:
    """Host memory that the pass takes beside the model's weights."""
    tokens = sum(len(sample) for sample in calibration.samples)
    needs = [quantizer.pass_bytes(model.facts, tokens) for quantizer in quantizers]
    weights = 4 * model.facts.parameters  # as they are counted there
    itself = max((alone for alone, _ in needs), default=weights) - weights
    return itself + sum(added for _, added in needs)


class _CalibrationText:
    """The calibration text on its way through the model, once for every set of weights."""

    def __init__(
        self,
        jobs: Sequence[Job],
        chunks: list[Chunk],
        probe: Chunk,
        config: Any,
        called: Callable[[str], str],
        *,
        importance: bool,
        all_tokens: bool,
    ):
        """``importance`` tells whether the importance matrix is wanted; else it may stay empty.

        ``all_tokens`` are shown to every expert; ``called`` tells what the checkpoint calls a layer.
        """
        self.importance: dict[str, torch.Tensor] = {}
        self._weighs, self._called = importance, called
        self._all_tokens = all_tokens
        self.coverage = Coverage(all_tokens)
        self._jobs = jobs
        self._smoothing = sorted({job.smoothing for job in jobs if job.smoothing is not None})
        self._awq = [job for job in jobs if isinstance(job, AWQJob)]
        self._rounding = [job for job in jobs if isinstance(job, RTNJob)]
        gptq = [job for job in jobs if isinstance(job, GPTQJob)]
        self._walking = [job for job in gptq if job.sequential]
        self._sharing = [job for job in gptq if not job.sequential]
        # What unquantized layers make of the text, as far as somebody needs it, and what each
        # walking job's own make of it.
        self._plain = chunks
        self._own = dict.fromkeys(self._walking, chunks)
        self._probe = probe
        self._config = config
        self._folds: dict[Any, list[Fold | None]] = {}
        self.room = Room()

    def advance(self, index: int, module: nn.Module, full_name: Any) -> None:
        """Quantize a decoder layer for all jobs, and move the text past it."""
        stages = find_stages(module, self._probe, index)
        layer = Layer(module, stages, full_name)
        inputs: StageInputs | None = {} if any(job.compares for job in self._walking) else None
        shared = self._share(index, layer, inputs)
        folds = self._find_folds(index, layer) if self._awq or self._smoothing else []
        versions: dict[float | None, Smoothed] = {None: Smoothed(layer, shared, {}, {})}
        for share in self._smoothing:
            stored = self._jobs[0].stored_dtype
            versions[share] = smooth(layer, shared, folds, share, stored)
        for rounding in self._rounding:
            with _timed([rounding]):
                own = versions[rounding.smoothing]
                rounding.take(own.layer, own.stats)
        for job in self._awq:
            with _timed([job]):
                own = versions[job.smoothing]
                job.take(own.layer, own.stats, folds)
        if not self._sharing:
            # Large, and of no more use.
            for version in versions.values():
                version.stats.clear()
        self._solve(index, versions, inputs)
        for each in self._jobs:
            each.add_changed(versions[each.smoothing].changed)
        hidden = run_layer(module, self._probe, index).to("cpu")
        self._probe = replace(self._probe, hidden=hidden)

    def _share(self, index: int, layer: Layer, keep: StageInputs | None) -> list[InputStats]:
        # The statistics of the unquantized model, of each stage, if somebody wants them.
        gathered: list[InputStats] = []
        products = bool(self._awq or self._sharing)
        ranges = bool(self._smoothing) or any(
            job.ranges for job in (*self._awq, *self._sharing, *self._rounding)
        )
        if not (products or ranges or self._weighs) and keep is None:
            return gathered

        def take(stages: Sequence[Stage], stats: Sequence[InputStats]) -> None:
            self.coverage.add(layer.full_name, stages, stats)
            for stage, seen in zip(stages, stats, strict=True):
                values = seen.importance.cpu()
                self.importance |= {layer.full_name(name): values for name in stage.linears}
            if products or ranges:
                gathered.extend(stats)

        self._plain = advance(
            layer.module,
            index,
            layer.stages,
            self._plain,
            layer.full_name,
            take,
            changes_weights=False,
            gather=lambda name: InputStats(self._called(name), products=products, ranges=ranges),
            keep=keep,
            all_tokens=self._all_tokens,
        )
        return gathered

    def _solve(
        self, index: int, versions: Mapping[float | None, Smoothed], plain: StageInputs | None
    ) -> None:
        every = [*self._walking, *self._sharing]
        module = versions[None].layer.module
        stages, walking, sharing = versions[None].layer.stages, self._walking, self._sharing
        room = self.room.free(next(module.parameters()).device)
        rounds = rounds_needed(module, stages, self._plain, len(walking), len(sharing), room)
        given = {share: version.inputs(plain) for share, version in versions.items()}
        for number in range(rounds):
            # Both kinds are in every round, so that nobody's loop over columns runs alone.
            jobs = every[number::rounds]
            layers = [versions[job.smoothing].layer for job in jobs]
            walks: list[Callable[[Callable[[_Asked], _Matrices]], list[Chunk]]] = [
                partial(
                    _walk,
                    index,
                    layer,
                    self._own[job],
                    given[job.smoothing] if job.compares else None,
                    ranges=job.ranges,
                    all_tokens=self._all_tokens,
                    called=self._called,
                )
                if job.sequential
                else partial(_ask_only, versions[job.smoothing])
                for job, layer in zip(jobs, layers, strict=True)
            ]
            results, seconds = in_lockstep(walks, partial(_answer, layers, jobs))
            for job, chunks, spent in zip(jobs, results, seconds, strict=True):
                job.seconds += spent
                if job.sequential:
                    self._own[job] = chunks

    def _find_folds(self, index: int, layer: Layer) -> list[Fold | None]:
        # Layers that are built alike fold alike.
        key = (
            tuple(layer.stages),
            tuple(
                (name, type(part), *(tuple(p.shape) for p in part.parameters(recurse=False)))
                for name, part in layer.module.named_modules()
            ),
        )
        if key not in self._folds:
            self._folds[key] = find_folds(
                layer.module, layer.stages, self._probe, index, self._config
            )
        return self._folds[key]


def _answer(
    layers: Sequence[Layer], jobs: Sequence[GPTQJob], asked: Sequence[_Asked]
) -> list[_Matrices]:
    with _timed(jobs):
        return solve_stages(jobs, layers, asked[0][0], [stats for _, stats in asked])


def _walk(
    index: int,
    layer: Layer,
    chunks: list[Chunk],
    plain: StageInputs | None,
    ask: Callable[[_Asked], _Matrices],
    *,
    ranges: bool,
    all_tokens: bool,
    called: Callable[[str], str],
) -> list[Chunk]:
    # The weights of one configuration are its own.
    module = copy.deepcopy(layer.module)
    modules = dict(module.named_modules())

    def quantize(stages: Sequence[Stage], stats: Sequence[InputStats]) -> None:
        for name, matrix in ask((stages, stats)).items():
            set_weight(modules[name], matrix.dense(torch.float32))

    return advance(
        module,
        index,
        layer.stages,
        chunks,
        layer.full_name,
        quantize,
        changes_weights=True,
        gather=lambda name: InputStats(called(name), channels=False, ranges=ranges),
        plain=plain,
        all_tokens=all_tokens,
    )


def _ask_only(version: Smoothed, ask: Callable[[_Asked], _Matrices]) -> list[Chunk]:
    # Who shares the unquantized model's statistics is solved along with those who walk.
    stats = iter(version.stats)
    for block in blocks_of(version.layer.stages):
        ask((block, [next(stats) for _ in block]))
    return []


@contextmanager
def _timed(jobs: Sequence[Job]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    for job in jobs:
        job.seconds += (time.perf_counter() - started) / len(jobs)
