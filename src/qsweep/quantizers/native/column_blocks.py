"""Matrices of one shape, rounded block by block: what all of GPTQ's ways through columns share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from qsweep.formats.numbers.grids import Grid, Integers
from qsweep.formats.numbers.scheme import LayerScheme
from qsweep.formats.packing import QuantizedMatrix
from qsweep.quantizers.native.gptq import Factor, Settings

# Columns whose errors reach those behind them at once, when all of theirs are known.
BLOCK = 128
# By part of the configurations, those of one grid or all that are integers: what rounds their columns.
Rounding = list[tuple[slice, Callable[[torch.Tensor, torch.Tensor], None]]]


@dataclass(frozen=True)
class Problem:
    """One configuration: what a solver is given of it."""

    weight: torch.Tensor
    factor: Factor
    settings: Settings
    layer: LayerScheme

    @property
    def grid(self) -> Grid:
        """The levels."""
        return self.layer.scheme.grid

    @cached_property
    def importance(self) -> torch.Tensor:
        """What errors of the column at each position weigh, float32 [columns]."""
        return self.factor.upper.diagonal().reciprocal().square()


class Columns(ABC):
    """Matrices of one shape, rounded column by column."""

    def __init__(self, problems: Sequence[Problem], sub_block: int):
        self._problems, self._sub_block = problems, sub_block
        rows, self._columns = problems[0].weight.shape
        # [columns, rows] in the order of rounding.
        self._work = _by_columns(problems)
        count, device = len(self._work), self._work[0].device
        self._codes = torch.empty(count, self._columns, rows, dtype=torch.uint8, device=device)
        self._losses = [torch.zeros(rows, device=device) for _ in self._work]
        self._parts = [
            (slice(first, last), grid)
            for first, last, grid in _runs([one.grid for one in problems])
        ]
        # The lowest and the largest code of each configuration [count, 1], of integers.
        self._bounds = [_bounds(problems[part], device) for part, _ in self._parts]

    def run(self) -> list[tuple[QuantizedMatrix, torch.Tensor]]:
        """The matrix of each configuration, and the loss of each row, float32 [rows]."""
        for _ in self._blocks():
            pass
        return [(self._restored(c), losses) for c, losses in enumerate(self._losses)]

    def _blocks(self) -> Iterator[torch.Tensor]:
        # The errors of each block of columns, once it is rounded.
        for start in range(0, self._columns, BLOCK):
            yield self._solve_block(start, min(start + BLOCK, self._columns))

    def _solve_block(self, start: int, end: int) -> torch.Tensor:
        block = torch.stack([matrix[start:end] for matrix in self._work])
        upper = torch.stack([one.factor.upper[start:end, start:end] for one in self._problems])
        errors = torch.empty_like(block)
        for sub in range(0, end - start, self._sub_block):
            stop = min(sub + self._sub_block, end - start)
            self._round(block, upper, errors, start, sub, stop)
            for c in range(len(self._work)):
                if stop < end - start:
                    passed_on = upper[c, sub:stop, stop:].T
                    block[c, stop:].addmm_(passed_on, errors[c, sub:stop], alpha=-1)
        for c, one in enumerate(self._problems):
            self._losses[c] += errors[c].square().sum(0)
            if end < self._columns:
                passed_on = one.factor.upper[start:end, end:].T
                self._work[c][end:].addmm_(passed_on, errors[c], alpha=-1)
        return errors

    @abstractmethod
    def _round(
        self,
        block: torch.Tensor,
        upper: torch.Tensor,
        errors: torch.Tensor,
        first: int,
        start: int,
        stop: int,
    ) -> None:
        """Round the columns from ``start`` to ``stop`` of a block that begins at ``first``.

        Args:
            block: What is left of the weights [count, columns, rows].
            upper: The factors' part of the block [count, columns, columns].
            errors: Is filled with e = (w - q) / U_ii, shaped as ``block``.
            first: The position of the block's first column.
            start: Which column of the block is the first.
            stop: Which is the first that is not rounded.
        """

    @abstractmethod
    def _restored(self, c: int) -> QuantizedMatrix:
        """One configuration's matrix, its columns in the order of the layer."""

    def _keep(self, levels: torch.Tensor, zero: torch.Tensor, first: int) -> None:
        # Levels [count, columns, rows] with zero points that broadcast against them.
        for part, grid in self._parts:
            codes = grid.codes(levels[part], zero[part])
            self._codes[part, first : first + levels.shape[1]] = codes

    def _rounding(self, zero: torch.Tensor) -> Rounding:
        # What rounds one column, with zero points [count, rows].
        found: Rounding = []
        for (part, grid), bounds in zip(self._parts, self._bounds, strict=True):
            if bounds is None:
                found.append((part, partial(_nearest, grid, zero[part])))
            else:
                lowest, top = bounds
                ends = lowest - zero[part], top - zero[part]
                found.append((part, partial(_nearest_integers, *ends)))
        return found


def kind_of(grid: Grid) -> tuple[int, Grid | None]:
    """What configurations have in common that are rounded by one operation, and how these are sorted."""
    return (0, None) if isinstance(grid, Integers) else (1, grid)


def _nearest_integers(
    lowest: torch.Tensor, highest: torch.Tensor, steps: torch.Tensor, levels: torch.Tensor
) -> None:
    torch.clamp(torch.round(steps, out=levels), lowest, highest, out=levels)


def _nearest(grid: Grid, zero: torch.Tensor, steps: torch.Tensor, levels: torch.Tensor) -> None:
    found = grid.nearest(levels.copy_(steps), zero)
    if found is not levels:
        levels.copy_(found)


def _bounds(
    problems: Sequence[Problem], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | None:
    grids = [one.grid for one in problems]
    ends = [(grid.lowest, grid.top) for grid in grids if isinstance(grid, Integers)]
    if not ends:
        return None
    lowest, top = torch.tensor(ends, device=device, dtype=torch.float32).T[..., None]
    return lowest, top


def _runs(grids: Sequence[Grid]) -> list[tuple[int, int, Grid]]:
    """Where neighbours are of one kind: first, last + 1, and one of their grids."""
    bounds = [n for n in range(len(grids)) if n == 0 or kind_of(grids[n]) != kind_of(grids[n - 1])]
    return [
        (first, last, grids[first])
        for first, last in zip(bounds, [*bounds[1:], len(grids)], strict=True)
    ]


def _by_columns(problems: Sequence[Problem]) -> list[torch.Tensor]:
    # [columns, rows] in the order of rounding, as copies; what several have in common is turned once.
    turned = {id(one.weight): one.weight.T.contiguous() for one in problems}
    return [
        turned[id(one.weight)].clone()
        if one.factor.order is None
        else turned[id(one.weight)][one.factor.order]
        for one in problems
    ]


def inverse(permutation: torch.Tensor) -> torch.Tensor:
    """Where each of what a permutation has moved went."""
    place = torch.empty_like(permutation)
    place[permutation] = torch.arange(len(place), device=place.device)
    return place
