"""GPTQ's way through the columns of matrices, for many configurations side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from qsweep.formats.numbers.rounding import grouped_rows, ragged_groups
from qsweep.formats.numbers.scheme import LayerScheme
from qsweep.formats.packing import QuantizedMatrix
from qsweep.quantizers.native.column_blocks import Columns, Problem, inverse, kind_of
from qsweep.quantizers.native.gptq import Factor, Settings

# Columns of a block that are updated together after their errors are known. They lie in one group:
# those of 16 are solved apart from others.
_SUB_BLOCKS = (32, 16)


def solve(
    weights: Sequence[torch.Tensor],
    factors: Sequence[Factor],
    settings: Sequence[Settings],
    layers: Sequence[LayerScheme],
) -> list[tuple[QuantizedMatrix, torch.Tensor]]:
    """Quantize one matrix, or matrices of one shape side by side.

    Args:
        weights: float32 [rows, columns], one for each configuration; they are not changed.
        factors: The factor that each is to be quantized with.
        settings: The settings of each.
        layers: The scheme of each with what it is for these rows.

    Returns:
        For each configuration the matrix, and the loss of each row, float32 [rows].

    What a configuration gets does not depend on its neighbours: only elementwise operations run
    over all of them, sums and matrix products are made for each by itself.
    """
    problems = list(map(Problem, weights, factors, settings, layers))
    found: dict[int, tuple[QuantizedMatrix, torch.Tensor]] = {}
    for way, columns, numbers in _alike(problems):
        some = way([problems[n] for n in numbers], columns).run()
        found |= dict(zip(numbers, some, strict=True))
    return [found[number] for number in range(len(problems))]


@dataclass(frozen=True)
class Part:
    """What became of some rows and columns of a matrix, in the order of rounding.

    Attributes:
        codes: uint8 [columns, rows].
        scale: float32 [rows, groups].
        zero: float32 [rows, groups].
        opened: The scheme of each span.
        errors: e = (w - q) / U_ii, float32 [columns, rows].
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    opened: list[LayerScheme]
    errors: torch.Tensor


def solve_parts(problems: Sequence[Problem]) -> list[Part]:
    """Round parts of matrices, of one shape, whose columns come as they stand: see :func:`solve`."""
    found: dict[int, Part] = {}
    for _, columns, numbers in _alike(problems):
        some = _Grouped([problems[n] for n in numbers], columns).parts()
        found |= dict(zip(numbers, some, strict=True))
    return [found[number] for number in range(len(problems))]


def _alike(problems: Sequence[Problem]) -> "Iterator[tuple[type[Columns], int, list[int]]]":
    alike: dict[tuple[type[Columns], int], list[int]] = {}
    for number, one in enumerate(problems):
        alike.setdefault(_way(one), []).append(number)
    for (way, columns), numbers in alike.items():
        # Integers first, so that one operation rounds all of them.
        yield way, columns, sorted(numbers, key=lambda n: repr(kind_of(problems[n].grid)))


def _way(problem: Problem) -> "tuple[type[Columns], int]":
    wide, narrow = _SUB_BLOCKS
    if problem.settings.static:
        return _Static, wide
    size = problem.settings.group_size
    small = size % wide and size < problem.weight.shape[1]
    return _Grouped, narrow if small else wide


class _Grouped(Columns):
    """A group's scale is found when its first column is reached, from what is left of the weights.

    Groups hold as many columns as are rounded together, or a multiple.
    """

    def __init__(self, problems: Sequence[Problem], sub_block: int):
        super().__init__(problems, sub_block)
        count, (rows, _), device = len(problems), problems[0].weight.shape, self._codes.device
        # Of the group at hand, and of all groups.
        self._scale, self._zero = torch.empty(2, count, rows, device=device)
        self._scales: list[list[torch.Tensor]] = [[] for _ in problems]
        self._zeros: list[list[torch.Tensor]] = [[] for _ in problems]
        # The scheme of each span that was opened.
        self._opened: list[list[LayerScheme]] = [[] for _ in problems]

    def _restored(self, c: int) -> QuantizedMatrix:
        """See :meth:`Columns._restored`."""
        return restored(self._problems[c], self._codes[c], *self._found(c), self._opened[c])

    def parts(self) -> list[Part]:
        """What became of each, as it was rounded."""
        errors = torch.cat(list(self._blocks()), 1)
        return [
            Part(self._codes[c], *self._found(c), self._opened[c], errors[c])
            for c in range(len(errors))
        ]

    def _found(self, c: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack(self._scales[c], 1), torch.stack(self._zeros[c], 1)

    def _open_group(self, c: int, first: int, rest: torch.Tensor) -> None:
        # Errors have reached the columns of the block only, ``rest`` being what is left of it, which is
        # all there is to see unless the group is wider than a block.
        problem = self._problems[c]
        setting = problem.settings
        size, count = setting.group_size, setting.groups_in_span
        opens = first % (size * count) == 0
        width = min(size * count if opens else size, self._columns - first)
        ahead, importance = self._ahead(c, first, rest, width)
        if opens:
            span = ahead.view(len(ahead), count, -1)
            self._opened[c].append(problem.layer.opened(span, importance))
        group = ahead[:, None, :size].contiguous()
        scale, zero = self._opened[c][-1].find(group, importance[:size])
        self._scale[c], self._zero[c] = scale[:, 0], zero[:, 0]
        self._scales[c].append(scale[:, 0])
        self._zeros[c].append(zero[:, 0])

    def _ahead(
        self, c: int, first: int, rest: torch.Tensor, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # The weights [rows, width] that come next, and what their errors weigh.
        inside, last = rest[:width], first + width
        columns = torch.cat([inside, self._work[c][first + len(inside) : last]]).T.contiguous()
        return columns, self._problems[c].importance[first:last]

    def _round(
        self,
        block: torch.Tensor,
        upper: torch.Tensor,
        errors: torch.Tensor,
        first: int,
        start: int,
        stop: int,
    ) -> None:
        for c, one in enumerate(self._problems):
            if (first + start) % one.settings.group_size == 0:
                self._open_group(c, first + start, block[c, start:])
        # A row's scale s and zero point z stay the same here, so that rounding is done in steps of its
        # grid, v = w / s: with r the level nearest to v, the errors are s (v - r) / U_ii, and
        # s cancels in v_j -= (v_i - r_i) U_ij / U_ii, which leaves few operations for each column.
        diagonal = upper.diagonal(dim1=1, dim2=2)[:, start:stop, None]
        ratios = upper[:, start:stop, start:stop] / diagonal
        steps = block[:, start:stop] / self._scale[:, None]
        levels, buffer = torch.empty_like(steps), torch.empty_like(steps)
        rounding = self._rounding(self._zero)
        for column in range(stop - start):
            left, level = steps[:, column], levels[:, column]
            for part, nearest in rounding:
                nearest(left[part], level[part])
            left -= level
            if column + 1 < stop - start:
                # Multiplication and subtraction stay two operations: fused, their rounding could depend
                # on where in memory a configuration lies.
                update = buffer[:, column + 1 :]
                torch.mul(ratios[:, column, column + 1 :, None], left[:, None], out=update)
                steps[:, column + 1 :] -= update
        torch.mul(steps, self._scale[:, None], out=errors[:, start:stop]).div_(diagonal)
        self._keep(levels, self._zero[:, None], first + start)


class _Static(Columns):
    """Scales are found before, of groups as they stand; columns come in any order, each with its own."""

    def __init__(self, problems: Sequence[Problem], sub_block: int):
        super().__init__(problems, sub_block)
        # [rows, groups] each, and the group of the column at each position.
        self._found: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._group: list[torch.Tensor] = []
        for one in problems:
            order, size = one.factor.order, one.settings.group_size
            assert order is not None
            weighed = grouped_rows(one.importance[inverse(order)][None], size)[0]
            self._found.append(one.layer.find(grouped_rows(one.weight, size), weighed))
            self._group.append(order // size)

    def _round(
        self,
        block: torch.Tensor,
        upper: torch.Tensor,
        errors: torch.Tensor,
        first: int,
        start: int,
        stop: int,
    ) -> None:
        """See :meth:`Columns._round`."""
        at = slice(first + start, first + stop)
        scale, zero = (
            torch.stack(
                [
                    found[n].T[group[at]]
                    for found, group in zip(self._found, self._group, strict=True)
                ]
            )
            for n in (0, 1)
        )
        left = block[:, start:stop].clone()
        levels, steps = torch.empty_like(left), torch.empty_like(left[:, 0])
        for column in range(stop - start):
            own = scale[:, column]
            torch.div(left[:, column], own, out=steps)
            for part, nearest in self._rounding(zero[:, column]):
                nearest(steps[part], levels[part, column])
            diagonal = upper[:, start + column, start + column, None]
            error = (left[:, column] - levels[:, column] * own).div_(diagonal)
            errors[:, start + column] = error
            if column + 1 < stop - start:
                ratios = upper[:, start + column, start + column + 1 : stop, None]
                # Two operations, as above.
                left[:, column + 1 :] -= ratios * error[:, None]
        self._keep(levels, zero, first + start)

    def _restored(self, c: int) -> QuantizedMatrix:
        """See :meth:`Columns._restored`."""
        one = self._problems[c]
        assert one.factor.order is not None
        codes = self._codes[c][inverse(one.factor.order)]
        ragged = ragged_groups(len(codes), one.settings.group_size, codes.device)
        return one.layer.matrix(codes.T.contiguous(), *self._found[c], ragged)


def restored(
    problem: Problem,
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    opened: Sequence[LayerScheme],
) -> QuantizedMatrix:
    """The matrix in the order of the layer, of what is in the order of rounding.

    Args:
        problem: What was to be rounded.
        codes: uint8 [columns, rows].
        scale: float32 [rows, groups].
        zero: float32 [rows, groups].
        opened: The scheme of each span.
    """
    factor, settings = problem.factor, problem.settings
    g_idx = spans = None
    if factor.order is not None:
        place = inverse(factor.order)
        codes = codes[place]
        if factor.groups is not None:
            back = inverse(factor.groups)
            scale, zero = scale[:, back], zero[:, back]
            count = settings.groups_in_span
            spans = back[::count] // count
        elif scale.shape[1] > 1:
            g_idx = place // settings.group_size
    if g_idx is None:
        g_idx = ragged_groups(len(codes), settings.group_size, codes.device)
    layer = problem.layer.joined(opened, spans)
    return layer.matrix(codes.T.contiguous(), scale.contiguous(), zero.contiguous(), g_idx)
