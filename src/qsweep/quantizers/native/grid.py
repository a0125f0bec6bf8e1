"""The pass over a model that quantizes a whole grid of configurations, layer by layer."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qsweep.artifact import Artifact
from qsweep.errors import ConfigError, IncompatibleTrial
from qsweep.packing import Grid
from qsweep.quantizers import CalibrationTokens, Progress, SourceModel
from qsweep.quantizers.native.fold import Fold, find_folds
from qsweep.quantizers.native.graph import find_decoder, set_weight
from qsweep.quantizers.native.jobs import AWQJob, GPTQJob, Layer, Solver, TypicalGPTQ, solve_stage
from qsweep.quantizers.native.lockstep import in_lockstep
from qsweep.quantizers.native.options import NativeAWQ, NativeQuantizer
from qsweep.quantizers.native.stats import InputStats
from qsweep.quantizers.native.walk import (
    Chunk,
    Stage,
    StageInputs,
    advance,
    calibration_dtype,
    capture,
    find_stages,
    home_of,
    run_layer,
    walks_at_once,
)

_Asked = tuple[Stage, InputStats]
_Grids = dict[str, Grid]


def run(
    model: SourceModel,
    calibration: CalibrationTokens | None,
    configurations: Sequence[tuple[NativeQuantizer, Path]],
    progress: Progress,
) -> list[Artifact]:
    """See :func:`qsweep.quantizers.native.quantize_grid`."""
    if calibration is None or not calibration.samples:
        raise ConfigError("gptq and awq need calibration text; choose one with calibration=NAME")
    for quantizer, _ in configurations:
        quantizer.check(model.facts)
    started = time.perf_counter()
    progress("load", None)
    network = _load(model)
    decoder = find_decoder(network)
    jobs: list[GPTQJob | AWQJob] = [
        AWQJob(quantizer, out, model.facts)
        if isinstance(quantizer, NativeAWQ)
        else GPTQJob(quantizer, out, model.facts)
        for quantizer, out in configurations
    ]
    progress("embed", None)
    chunks, probe = capture(network, decoder, calibration.samples, model.device)
    # What is kept of a layer's inputs is as much as eight texts where feed-forward is four times wide.
    kept = 8 if any(isinstance(job, GPTQJob) and job.compares for job in jobs) else 0
    groups = _walking_together(jobs)
    home = home_of(chunks, 2 + len(groups) + kept, model.device)
    chunks = [replace(chunk, hidden=chunk.hidden.to(home)) for chunk in chunks]
    walks = [_Walk(chunks, group) for group in groups]
    text = _Text(jobs, walks, chunks, probe, network.config)
    count = len(decoder.layers)
    for index, module in enumerate(decoder.layers):
        progress("quantize", index / count)
        module.to(model.device)
        text.advance(index, module, partial(decoder.full_name, index))
        module.to("cpu")
    progress("write", None)
    spent = time.perf_counter() - started
    common = {
        "shared_s": round(spent - sum(job.seconds for job in jobs), 3),
        "calibration_tokens": sum(len(sample) for sample in calibration.samples),
        "calibration_dtype": calibration_dtype(network, model.device),
    }
    return [job.finish(network, common) for job in jobs]


class _Walk:
    """The text on its way through quantized layers, for the configurations whose inputs it makes."""

    def __init__(self, chunks: list[Chunk], jobs: Sequence[GPTQJob]):
        self.chunks = chunks
        self.jobs = jobs
        self.compares = any(job.compares for job in jobs)
        # The first one's quantized layers are those that the text runs through.
        self.solvers: list[Solver] = [*jobs]
        self.shared = jobs[0].propagate == "typical"
        if self.shared:
            self.solvers.insert(0, TypicalGPTQ(jobs[0].bits))


def _walking_together(jobs: Sequence[GPTQJob | AWQJob]) -> list[list[GPTQJob]]:
    groups: dict[Any, list[GPTQJob]] = {}
    for number, job in enumerate(jobs):
        if isinstance(job, GPTQJob) and job.propagate:
            key = number if job.propagate == "own" else (job.propagate, job.bits)
            groups.setdefault(key, []).append(job)
    return list(groups.values())


class _Text:
    """The calibration text on its way through the model, once for every set of weights."""

    def __init__(
        self,
        jobs: Sequence[GPTQJob | AWQJob],
        walks: Sequence[_Walk],
        chunks: list[Chunk],
        probe: Chunk,
        config: Any,
    ):
        self._awq = [job for job in jobs if isinstance(job, AWQJob)]
        self._screening = [job for job in jobs if isinstance(job, GPTQJob) and not job.propagate]
        self._walks = walks
        # What unquantized layers make of the text, for those who share it.
        self._plain = chunks
        self._probe = probe
        self._config = config
        self._folds: dict[Any, list[Fold | None]] = {}

    def advance(self, index: int, module: nn.Module, full_name: Any) -> None:
        """Quantize a decoder layer for all jobs, and move the text past it."""
        stages = find_stages(module, self._probe, index)
        layer = Layer(module, stages, full_name)
        plain: StageInputs | None = None
        if any(walk.compares for walk in self._walks):
            plain = {}
        if self._awq or self._screening or plain is not None:
            self._share(index, layer, plain)
        if self._walks:
            self._propagate(index, layer, plain)
        hidden = run_layer(module, self._probe, index).to("cpu")
        self._probe = Chunk(hidden, self._probe.calls)

    def _propagate(self, index: int, layer: Layer, plain: StageInputs | None) -> None:
        at_once = walks_at_once(layer.module, self._walks[0].chunks)
        for start in range(0, len(self._walks), at_once):
            walks = self._walks[start : start + at_once]
            results, seconds = in_lockstep(
                [
                    partial(_walk, index, layer, walk.chunks, plain if walk.compares else None)
                    for walk in walks
                ],
                partial(_solve, layer, walks, at_once),
            )
            for walk, chunks, spent in zip(walks, results, seconds, strict=True):
                walk.chunks = chunks
                if not walk.shared:
                    walk.jobs[0].seconds += spent

    def _share(self, index: int, layer: Layer, keep: StageInputs | None) -> None:
        gathered: list[InputStats] = []
        at_once = walks_at_once(layer.module, self._plain)

        def gather(stage: Stage, stats: InputStats) -> None:
            if self._screening:
                with _timed(self._screening):
                    shared = [stats] * len(self._screening)
                    solve_stage(self._screening, layer, stage, shared, at_once)
            if self._awq:
                gathered.append(stats)

        self._plain = advance(
            layer.module,
            index,
            layer.stages,
            self._plain,
            layer.full_name,
            gather,
            changes_weights=False,
            keep=keep,
        )
        if self._awq:
            folds = self._find_folds(index, layer)
            for job in self._awq:
                with _timed([job]):
                    job.take(layer, gathered, folds)

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


def _solve(
    layer: Layer, walks: Sequence[_Walk], at_once: int, asked: Sequence[_Asked]
) -> list[_Grids]:
    # For each walk what it goes on with, once all of its configurations are solved.
    solvers: list[Solver] = []
    stats: list[InputStats] = []
    first = []
    for walk, (_, seen) in zip(walks, asked, strict=True):
        first.append(len(solvers))
        solvers += walk.solvers
        stats += [seen] * len(walk.solvers)
    with _timed([job for walk in walks for job in walk.jobs]):
        grids = solve_stage(solvers, layer, asked[0][0], stats, at_once)
    return [grids[number] for number in first]


def _walk(
    index: int,
    layer: Layer,
    chunks: list[Chunk],
    plain: StageInputs | None,
    ask: Callable[[_Asked], _Grids],
) -> list[Chunk]:
    # The weights of one configuration are its own.
    module = copy.deepcopy(layer.module)
    modules = dict(module.named_modules())

    def quantize(stage: Stage, stats: InputStats) -> None:
        for name, grid in ask((stage, stats)).items():
            set_weight(modules[name], grid.dense(torch.float32))

    return advance(
        module,
        index,
        layer.stages,
        chunks,
        layer.full_name,
        quantize,
        changes_weights=True,
        plain=plain,
    )


@contextmanager
def _timed(jobs: Sequence[GPTQJob | AWQJob]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    for job in jobs:
        job.seconds += (time.perf_counter() - started) / len(jobs)


def _load(model: SourceModel) -> Any:
    from transformers import AutoModelForCausalLM

    # CPUs compute in float32; a GPU in the checkpoint's own dtype.
    dtype: Any = torch.float32 if model.device == "cpu" else "auto"
    try:
        network = AutoModelForCausalLM.from_pretrained(
            model.path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=model.trust_remote_code,
        )
    except (KeyError, ValueError, ImportError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise IncompatibleTrial(f"{model.path}: transformers cannot build it ({first})") from error
    network.eval().requires_grad_(False)
    return network
