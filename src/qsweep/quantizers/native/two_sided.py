"""GPTQ that also passes errors on from output to output, as the model's own output feels them.

Plain GPTQ minimizes tr(E A E^T), E = W - Q, A the Gram matrix of a layer's inputs: all outputs weigh
the same, and do not know of each other. What the KL divergence from the unquantized model feels is about
tr(B E A E^T), B the mean of g g^T over gradients g at the layer's outputs (Martens and Grosse 2015,
arXiv:1503.05671). Rounding that takes both sides into account is that of Tseng, Sun and De Sa 2025,
"Model-Preserving Adaptive Rounding" (arXiv:2505.22988).

With B^-1 = V^T V, V upper triangular, in the order in which rows are rounded, GPTQ's own step holds for
rows: if some became q instead of t, f = V_bb^-T (t - q) of that block of rows is taken from those that
follow, t_j -= V_bj^T f. Whatever became of the rows before, the columns of a row are then GPTQ's as ever.
Rows of a block do not hear of each other, so that blocks are small. A part of the rows needs
columns before it, and the same columns of rows before it: what lies on a diagonal of such parts is
rounded together.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch

from qsweep.base.errors import TrialFailed
from qsweep.formats.numbers.scheme import LayerScheme
from qsweep.formats.packing import QuantizedMatrix
from qsweep.quantizers.native import columns, gptq
from qsweep.quantizers.native.column_blocks import BLOCK, Problem, inverse
from qsweep.quantizers.native.columns import Part
from qsweep.quantizers.native.gptq import Factor

# Rows that are rounded together: what fewer and more are worth is in docs/parity.md.
ROWS = 16
# Of the mean diagonal of B, beside what few gradients make necessary.
DAMPING = 0.5


def factorize_outputs(hessian: torch.Tensor, positions: int, name: str) -> Factor:
    """The factor of B, the rows that are felt most first.

    Its eigenvalues are off by about rows / positions of their mean, which is added to the damping.

    Args:
        hessian: B, float32 [rows, rows].
        positions: How many gradients it is the mean of.
        name: The layer, for messages.

    Raises:
        TrialFailed: It cannot be factorized at any damping.
    """
    damp = DAMPING + len(hessian) / max(positions, 1)
    ordered = gptq.Settings(len(hessian), desc_act=True, act_group_aware=False, damp_percent=damp)
    try:
        return gptq.factorize(hessian, ordered, name)
    except TrialFailed as error:
        raise TrialFailed(
            f"{name}: what the model's output feels of it cannot be factorized at any damping; "
            "quant.gptq_output_hessian=false does without"
        ) from error


def solve(
    problems: Sequence[Problem], outputs: Sequence[Sequence[Factor]]
) -> list[QuantizedMatrix]:
    """Quantize matrices side by side.

    Args:
        problems: As :func:`qsweep.quantizers.native.columns.solve` has them; rows share no scale.
        outputs: For each the factors of blocks of its outputs, one after another; none where
            nothing is known of them, which makes it plain GPTQ.
    """
    plain = [n for n, factors in enumerate(outputs) if not factors]
    found = {n: _plain(problems[n]) for n in plain}
    states = {
        n: [
            _State(part, factor)
            for part, factor in zip(_blocks(problems[n], factors), factors, strict=True)
        ]
        for n, factors in enumerate(outputs)
        if factors
    }
    every = [state for some in states.values() for state in some]
    for step in range(max((state.steps for state in every), default=0)):
        alike: dict[tuple[int, ...], list[tuple[_State, int, int]]] = {}
        for state in every:
            for row, column in state.diagonal(step):
                alike.setdefault(state.shape(row, column), []).append((state, row, column))
        for some in alike.values():
            parts = columns.solve_parts([state.part(r, c) for state, r, c in some])
            for (state, row, column), part in zip(some, parts, strict=True):
                state.keep(row, column, part)
    found |= {n: _below([state.matrix() for state in some]) for n, some in states.items()}
    return [found[n] for n in range(len(problems))]


def _plain(problem: Problem) -> QuantizedMatrix:
    ((matrix, _),) = columns.solve(
        [problem.weight], [problem.factor], [problem.settings], [problem.layer]
    )
    return matrix


def _blocks(problem: Problem, factors: Sequence[Factor]) -> Iterator[Problem]:
    start = 0
    for factor in factors:
        rows = slice(start, start + len(factor.upper))
        layer = replace(problem.layer, rows=len(factor.upper))
        yield replace(problem, weight=problem.weight[rows], layer=layer)
        start = rows.stop


def _below(matrices: Sequence[QuantizedMatrix]) -> QuantizedMatrix:
    first = matrices[0]
    if len(matrices) == 1:
        return first
    joined = {
        each.name: torch.cat([getattr(matrix, each.name) for matrix in matrices])
        for each in fields(first)
        if isinstance(value := getattr(first, each.name), torch.Tensor)
        if each.name in ("codes", "zeros", "scales") or (each.name == "outer" and value.ndim)
    }
    return replace(first, **joined)


@dataclass(frozen=True)
class _Waiting:
    # What a part that is being rounded should have become, and what is left of that.
    target: torch.Tensor
    left: torch.Tensor


class _State:
    """A matrix, of which some parts are rounded."""

    def __init__(self, problem: Problem, outputs: Factor):
        assert outputs.order is not None
        self._problem, self._order = problem, outputs.order
        self._across, self._upper = outputs.upper, problem.factor.upper
        weight = problem.weight.index_select(0, self._order)
        order = problem.factor.order
        self._weight = weight if order is None else weight.index_select(1, order)
        rows, width = weight.shape
        settings = problem.settings
        together = math.lcm(BLOCK, settings.span or settings.group_size)
        self._rows, self._columns = _slices(rows, ROWS), _slices(width, together)
        # e of columns, and f of rows.
        self._errors, self._row_errors = torch.empty(2, rows, width, device=weight.device)
        self._done: dict[tuple[int, int], Part] = {}
        self._waiting: dict[tuple[int, int], _Waiting] = {}

    @property
    def steps(self) -> int:
        """How many diagonals there are."""
        return len(self._rows) + len(self._columns) - 1

    def diagonal(self, step: int) -> Iterator[tuple[int, int]]:
        """Parts that do not need each other, as their numbers among rows and columns."""
        for column in range(len(self._columns)):
            if 0 <= step - column < len(self._rows):
                yield step - column, column

    def shape(self, row: int, column: int) -> tuple[int, ...]:
        """Of a part."""
        rows, some = self._rows[row], self._columns[column]
        return rows.stop - rows.start, some.stop - some.start

    def part(self, row: int, column: int) -> Problem:
        """A part as it is to be rounded, now that those before it are."""
        rows, some = self._rows[row], self._columns[column]
        passed = self._across[: rows.start, rows].T @ self._row_errors[: rows.start, some]
        target = self._weight[rows, some] - passed
        left = target - self._errors[rows, : some.start] @ self._upper[: some.start, some]
        self._waiting[row, column] = _Waiting(target, left)
        factor = Factor(self._upper[some, some], None, None, self._problem.factor.damp)
        size = min(self._problem.settings.group_size, left.shape[1])
        settings = replace(self._problem.settings, group_size=size)
        return Problem(left, factor, settings, self._layer(rows))

    def keep(self, row: int, column: int, part: Part) -> None:
        """Take in what became of it."""
        rows, some = self._rows[row], self._columns[column]
        waiting = self._waiting.pop((row, column))
        errors = part.errors.T
        difference = waiting.target - waiting.left + errors @ self._upper[some, some]
        within = self._across[rows, rows].T
        self._errors[rows, some] = errors
        self._row_errors[rows, some] = torch.linalg.solve_triangular(
            within, difference, upper=False
        )
        self._done[row, column] = replace(part, errors=part.errors[:0])

    def matrix(self) -> QuantizedMatrix:
        """All of it, in the order of the layer."""
        back = inverse(self._order)
        lines = [
            [self._done[row, column] for column in range(len(self._columns))]
            for row in range(len(self._rows))
        ]
        codes = torch.cat([torch.cat([part.codes for part in line]) for line in lines], 1)
        scale, zero = (
            torch.cat([torch.cat([getattr(part, name) for part in line], 1) for line in lines])
            for name in ("scale", "zero")
        )
        spans = [[layer for part in line for layer in part.opened] for line in lines]
        opened = [self._joined(same, back) for same in zip(*spans, strict=True)]
        return columns.restored(self._problem, codes[:, back], scale[back], zero[back], opened)

    def _layer(self, rows: slice) -> LayerScheme:
        layer = self._problem.layer
        whole = layer.whole
        if whole is not None and whole.ndim:
            whole = whole.index_select(0, self._order[rows])
        return replace(layer, rows=rows.stop - rows.start, whole=whole)

    def _joined(self, same: Sequence[LayerScheme], back: torch.Tensor) -> LayerScheme:
        # The same span of all rows; what spans know of their own is one number for each row.
        layer = self._problem.layer
        own = [one.whole for one in same if one.whole is not None]
        if layer.whole is not None or not own:
            return layer
        return replace(layer, whole=torch.cat(own)[back])


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
