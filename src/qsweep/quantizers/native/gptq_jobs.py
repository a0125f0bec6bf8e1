"""GPTQ configurations of a pass: many are solved in one loop over columns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qsweep.formats.numbers.scheme import Scheme, stacked
from qsweep.formats.packing import QuantizedMatrix
from qsweep.models.source import SourceModel
from qsweep.models.spelling import Spelling
from qsweep.quantizers.grouped import GroupedOptions
from qsweep.quantizers.native import columns, gptq, two_sided
from qsweep.quantizers.native.column_blocks import Problem
from qsweep.quantizers.native.jobs import Job, layer_schemes
from qsweep.quantizers.native.layers import Layer, Stage
from qsweep.quantizers.native.limits import COUPLED_OUTPUTS, LAYER_BYTES
from qsweep.quantizers.native.output_hessians import OutputHessian
from qsweep.quantizers.native.stats import InputStats, output_loss


class GPTQJob(Job):
    """A GPTQ configuration.

    Attributes:
        sequential: Whether it walks through quantized layers of its own.
        compares: Whether it wants to know what their inputs were in the unquantized model.
        weighs_outputs: Whether it wants to know what the model's output feels of its layers.
        felt: That, by linear layer's name in the model, where somebody has found it out.
    """

    def __init__(
        self, quantizer: GroupedOptions, out: Path, model: SourceModel, spelling: Spelling
    ):
        super().__init__(quantizer, out, model, spelling)
        self.sequential: bool = self._options["sequential"]
        self.compares: bool = self._options["gptaq_alpha"] > 0
        self.weighs_outputs: bool = self._options.get("gptq_output_hessian", False)
        self.felt: Mapping[str, OutputHessian] = {}
        # GPTQ's own layout and llama.cpp's blocks are reordered group by group.
        self._free = quantizer.holder in ("compressed-tensors", "bitsandbytes")
        self._damping: dict[str, float] = {}

    def settings(self, channels: int, scheme: Scheme) -> gptq.Settings:
        """How a layer of so many inputs is treated."""
        options, group_size = self._options, scheme.groups(channels)
        static = self._free and options["act_group_aware"] and not scheme.waits
        # Errors of the rows before reach columns after scales would be found.
        static = static and not self.weighs_outputs
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


@dataclass(frozen=True)
class _Part:
    """Linear layers of one stage that some jobs quantize from the same weights.

    Attributes:
        numbers: The jobs'.
        schemes: How each makes codes of all these layers.
        layer: Their decoder layer.
        linears: The weights float32 [rows, channels], by name.
        stats: What each job's inputs are.
        weighing: How many of the jobs weigh outputs.
    """

    numbers: list[int]
    schemes: list[Scheme]
    layer: Layer
    linears: dict[str, torch.Tensor]
    stats: list[InputStats]
    weighing: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix that these layers are together: rows do not know of each other."""
        return (
            sum(len(weight) for weight in self.linears.values()),
            next(iter(self.linears.values())).shape[1],
        )

    @property
    def rows(self) -> dict[str, slice]:
        """Where in that matrix each layer lies."""
        found, start = {}, 0
        for name, weight in self.linears.items():
            found[name] = slice(start, start + len(weight))
            start += len(weight)
        return found

    @property
    def bytes(self) -> int:
        """What solving it takes: for each job weights twice, codes, and two square matrices.

        Who weighs outputs also has weights in another order, and errors of two kinds; factors of
        outputs are had in common.
        """
        rows, channels = self.shape
        usual = len(self.numbers) * channels * (9 * rows + 8 * channels)
        if not self.weighing:
            return usual
        return usual + 12 * self.weighing * rows * channels + 4 * rows * min(rows, COUPLED_OUTPUTS)

    def among(self, wanted: Callable[[int], bool]) -> "_Part":
        """The same of some jobs, by their numbers."""
        chosen = [n for n, number in enumerate(self.numbers) if wanted(number)]
        return replace(
            self,
            numbers=[self.numbers[n] for n in chosen],
            schemes=[self.schemes[n] for n in chosen],
            stats=[self.stats[n] for n in chosen],
        )


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
            sum(jobs[number].weighs_outputs for number, _ in those),
        )
        for (which, names), those in alike.items()
    ]


def _solve(
    jobs: Sequence[GPTQJob], parts: Sequence[_Part]
) -> Iterator[tuple[int, dict[str, QuantizedMatrix]]]:
    """By job's number the matrices; the parts are of one shape."""
    plain = [part.among(lambda number: not jobs[number].weighs_outputs) for part in parts]
    weighing = [part.among(lambda number: jobs[number].weighs_outputs) for part in parts]
    yield from _solve_plain(jobs, [part for part in plain if part.numbers])
    yield from _solve_weighing(jobs, [part for part in weighing if part.numbers])


def _solve_plain(
    jobs: Sequence[GPTQJob], parts: Sequence[_Part]
) -> Iterator[tuple[int, dict[str, QuantizedMatrix]]]:
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
            matrices = {}
            for name, rows in part.rows.items():
                own, full = matrix.rows(rows), part.layer.full_name(name)
                jobs[number].keep(full, own, losses[rows], _raised(factor, asked), seen.extreme)
                matrices[name] = own
            yield number, matrices


def _solve_weighing(
    jobs: Sequence[GPTQJob], parts: Sequence[_Part]
) -> Iterator[tuple[int, dict[str, QuantizedMatrix]]]:
    problems, outputs = [], []
    for part in parts:
        felt = _Felt(part)
        found = _problems([jobs[n] for n in part.numbers], part)
        for number, scheme, (target, factor, setting) in zip(
            part.numbers, part.schemes, found, strict=True
        ):
            for name, layer in layer_schemes(scheme, part.linears).items():
                own = target[part.rows[name]]
                problems.append(Problem(own, factor, setting, layer))
                outputs.append(felt.of(jobs[number], name, len(own)))
    solved = iter(zip(problems, two_sided.solve(problems, outputs), strict=True))
    for part in parts:
        for number, seen in zip(part.numbers, part.stats, strict=True):
            matrices = {}
            for name in part.linears:
                problem, matrix = next(solved)
                error = problem.weight - matrix.dense(torch.float32)
                losses = output_loss(error, seen.gram)
                raised = _raised(problem.factor, problem.settings)
                jobs[number].keep(part.layer.full_name(name), matrix, losses, raised, seen.extreme)
                matrices[name] = matrix
            yield number, matrices


class _Felt:
    """What outputs are felt by, factorized once for all jobs."""

    def __init__(self, part: _Part):
        self._part = part
        self._found: dict[tuple[int, str], list[gptq.Factor]] = {}

    def of(self, job: GPTQJob, name: str, rows: int) -> list[gptq.Factor]:
        """The factors of blocks of a layer's outputs; none where nothing is known of it."""
        full = self._part.layer.full_name(name)
        known, device = job.felt.get(full), self._part.linears[name].device
        key = id(known), name
        if key not in self._found:
            blocks = [] if known is None else known.blocks
            assert known is None or sum(map(len, blocks)) == rows, full
            self._found[key] = [
                two_sided.factorize_outputs(block.to(device), known.positions, full)
                for block in blocks
                if known is not None
            ]
        return self._found[key]


def _raised(factor: gptq.Factor, asked: gptq.Settings) -> float | None:
    return None if factor.damp == asked.damp_percent else factor.damp


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
