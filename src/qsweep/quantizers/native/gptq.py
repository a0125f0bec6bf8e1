"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): columns rounded one by one, errors passed on.

With H = X^T X of a layer's inputs and U the upper triangular factor of its inverse, H^-1 = U^T U,
column i is rounded and the error e = (w_i - q_i) / U_ii is taken from the columns that follow,
w_j -= e U_ij. The sum of e^2 is then the loss tr((W - Q) H (W - Q)^T).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from qsweep.base.errors import TrialFailed
from qsweep.formats.numbers.grids import Grid, Integers
from qsweep.formats.numbers.scheme import LayerScheme
from qsweep.formats.packing import QuantizedMatrix

# Columns that are updated together after their errors are known, outer and inner. The inner ones lie
# in one group: those of 16 are solved apart from others.
_BLOCK = 128
_SUB_BLOCKS = (32, 16)
# By part of the configurations, those of one grid or all that are integers: what rounds their columns.
_Rounding = list[tuple[slice, Callable[[torch.Tensor, torch.Tensor], None]]]


@dataclass(frozen=True)
class Settings:
    """How GPTQ treats one layer.

    ``group_size`` is at most the layer's number of inputs. ``span`` is as many inputs as have scales
    that hang together, a multiple of it; 0: those of a group.
    """

    group_size: int
    desc_act: bool
    act_group_aware: bool
    damp_percent: float
    gptaq_alpha: float = 0.0
    span: int = 0

    @property
    def groups_in_span(self) -> int:
        """Groups whose scales hang together."""
        return max(1, self.span // self.group_size)


@dataclass(frozen=True)
class Factor:
    """What the inputs of a layer say to GPTQ.

    Attributes:
        upper: U, float32 [channels, channels], in the order in which columns are rounded.
        order: The column that is rounded at each position, int64 [channels]; None if as they are.
        groups: The group that stands at each position of groups, where these are moved as wholes.
        damp: The share of the mean diagonal that was added to it.
    """

    upper: torch.Tensor
    order: torch.Tensor | None
    groups: torch.Tensor | None
    damp: float


def factorize(gram: torch.Tensor, settings: Settings, name: str) -> Factor:
    """Order the columns and factorize the inverse of a Gram matrix [channels, channels].

    Channels that never fire get the mean diagonal, so that they are rounded to nearest and take no
    part in the compensation. Fewer tokens than channels make the matrix singular: the damping,
    which grows until the factorization succeeds, takes care of it.

    Raises:
        TrialFailed: not even a strongly damped matrix can be factorized.
    """
    diagonal = gram.diagonal().clone()
    dead = diagonal <= 0
    mean = diagonal[~dead].mean() if bool((~dead).any()) else torch.ones((), device=gram.device)
    order, groups = _order(diagonal, settings)
    damped = gram.clone() if order is None else gram.index_select(0, order).index_select(1, order)
    dead = dead if order is None else dead[order]
    undamped = damped.diagonal().clone()
    undamped[dead] = mean
    for damp in _damping(settings.damp_percent):
        damped.diagonal().copy_(undamped + damp * mean)
        # H = R R^T with R upper triangular comes from the Cholesky factor of H in reverse order;
        # then H^-1 = R^-T R^-1, so that U = R^-1: one factorization instead of two.
        lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if int(info) == 0 and bool(lower.diagonal().isfinite().all()):
            return Factor(_inverse_of_upper(lower.flip(0, 1)), order, groups, damp)
    raise TrialFailed(f"{name}: the Gram matrix of its inputs cannot be factorized at any damping")


def retarget(
    weight: torch.Tensor, gram: torch.Tensor, cross: torch.Tensor, factor: Factor, alpha: float
) -> torch.Tensor:
    """The weights to be quantized so that errors of the inputs are made up for.

    Layers before have changed the inputs from P to X. What a layer should still give is W P^T, and
    the W' that comes nearest to it from X is W (P^T X) H^-1 = W + W (P^T X - H) H^-1. That is the
    aim of GPTAQ (Li et al. 2025, arXiv:2504.02692, "asymmetric calibration"), here as a regression
    in closed form before the columns are rounded.

    Args:
        weight: float32 [rows, channels].
        gram: H = X^T X / tokens, [channels, channels].
        cross: P^T X / tokens, [channels, channels].
        factor: Of ``gram``; its damping keeps the regression from fitting the calibration text.
        alpha: How far to go, 0 to 1.

    Returns:
        float32 [rows, channels].
    """
    residual = weight @ (cross - gram)
    if factor.order is not None:
        residual = residual[:, factor.order]
    change = residual @ factor.upper.T @ factor.upper
    if factor.order is not None:
        change[:, factor.order] = change.clone()
    return weight + alpha * change


def _inverse_of_upper(matrix: torch.Tensor) -> torch.Tensor:
    # [[A, B], [0, C]]^-1 = [[A^-1, -A^-1 B C^-1], [0, C^-1]]: two thirds of the arithmetic of solving
    # for the identity.
    size = len(matrix)
    if size <= _BLOCK:
        identity = torch.eye(size, device=matrix.device)
        return torch.linalg.solve_triangular(matrix, identity, upper=True).contiguous()
    half = size // 2
    first, last = _inverse_of_upper(matrix[:half, :half]), _inverse_of_upper(matrix[half:, half:])
    inverse = torch.zeros_like(matrix, memory_format=torch.contiguous_format)
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[:half, half:] = -(first @ matrix[:half, half:] @ last)
    return inverse


def _damping(first: float) -> list[float]:
    return [first, *(max(first, 1e-4) * factor for factor in (2, 4, 8, 16)), 1.0, 10.0]


def _order(
    diagonal: torch.Tensor, settings: Settings
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if settings.desc_act:
        return diagonal.argsort(dim=0, descending=True, stable=True), None
    if not settings.act_group_aware:
        return None, None
    # Group-aware reordering (Gafni et al. 2025, arXiv:2505.14638): the most active columns first
    # within each group, and the groups by their most active column; groups stay what they are.
    # A last group that is not full stays the last.
    full = len(diagonal) // settings.group_size * settings.group_size
    grouped = diagonal[:full].view(-1, settings.group_size)
    within = grouped.argsort(dim=1, descending=True, stable=True)
    groups = grouped.amax(1).argsort(dim=0, descending=True, stable=True)
    if settings.groups_in_span > 1:
        groups = _within_spans(grouped.amax(1), settings.groups_in_span)
    first = torch.arange(len(grouped), device=diagonal.device)[:, None] * settings.group_size
    order = (within + first)[groups].flatten()
    if full == len(diagonal):
        return order, groups
    rest = diagonal[full:].argsort(dim=0, descending=True, stable=True) + full
    return torch.cat([order, rest]), torch.cat([groups, groups.new_tensor([len(groups)])])


def _within_spans(activity: torch.Tensor, count: int) -> torch.Tensor:
    # The most active of ``count`` groups first, and the spans by their most active group.
    spans = activity.view(-1, count)
    within = spans.argsort(dim=1, descending=True, stable=True)
    order = spans.amax(1).argsort(dim=0, descending=True, stable=True)
    first = torch.arange(len(spans), device=activity.device)[:, None] * count
    return (within + first)[order].flatten()


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
    found: dict[int, tuple[QuantizedMatrix, torch.Tensor]] = {}
    for columns in _SUB_BLOCKS:
        # Integers first, so that one operation rounds all of them.
        chosen = [n for n, one in enumerate(settings) if _sub_block(one, weights[n]) == columns]
        chosen.sort(key=lambda n: repr(_kind(layers[n].scheme.grid)))
        if chosen:
            some = _Solver(
                [weights[n] for n in chosen],
                [factors[n] for n in chosen],
                [settings[n] for n in chosen],
                [layers[n] for n in chosen],
                columns,
            ).run()
            found |= dict(zip(chosen, some, strict=True))
    return [found[number] for number in range(len(weights))]


def _sub_block(settings: Settings, weight: torch.Tensor) -> int:
    wide, narrow = _SUB_BLOCKS
    return narrow if settings.group_size % wide and settings.group_size < weight.shape[1] else wide


def _kind(grid: Grid) -> tuple[int, Grid | None]:
    return (0, None) if isinstance(grid, Integers) else (1, grid)


class _Solver:
    """Configurations whose groups hold as many columns as are rounded together, or a multiple."""

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        factors: Sequence[Factor],
        settings: Sequence[Settings],
        layers: Sequence[LayerScheme],
        sub_block: int,
    ):
        self._factors, self._settings, self._layers = factors, settings, layers
        self._sub_block = sub_block
        rows, self._columns = weights[0].shape
        # [columns, rows] in the order of rounding.
        self._work = _by_columns(weights, factors)
        count, device = len(self._work), self._work[0].device
        self._codes = torch.empty(count, self._columns, rows, dtype=torch.uint8, device=device)
        self._losses = [torch.zeros(rows, device=device) for _ in self._work]
        # Of the group at hand, and of all groups.
        self._scale, self._zero = torch.empty(2, count, rows, device=device)
        self._scales: list[list[torch.Tensor]] = [[] for _ in self._work]
        self._zeros: list[list[torch.Tensor]] = [[] for _ in self._work]
        # The scheme of each span that was opened.
        self._opened: list[list[LayerScheme]] = [[] for _ in self._work]
        self._parts = [
            (slice(first, last), grid)
            for first, last, grid in _runs([layer.scheme.grid for layer in layers])
        ]

    def run(self) -> list[tuple[QuantizedMatrix, torch.Tensor]]:
        """What :func:`solve` returns."""
        for start in range(0, self._columns, _BLOCK):
            self._solve_block(start, min(start + _BLOCK, self._columns))
        return [(self._restored(c), losses) for c, losses in enumerate(self._losses)]

    def _restored(self, c: int) -> QuantizedMatrix:
        factor, settings = self._factors[c], self._settings[c]
        scales, zeros = torch.stack(self._scales[c], 1), torch.stack(self._zeros[c], 1)
        return _restore(
            self._codes[c], scales, zeros, factor, settings, self._layers[c], self._opened[c]
        )

    def _solve_block(self, start: int, end: int) -> None:
        block = torch.stack([matrix[start:end] for matrix in self._work])
        upper = torch.stack([factor.upper[start:end, start:end] for factor in self._factors])
        errors = torch.empty_like(block)
        for sub in range(0, end - start, self._sub_block):
            stop = min(sub + self._sub_block, end - start)
            for c, setting in enumerate(self._settings):
                if (start + sub) % setting.group_size == 0:
                    self._open_group(c, start + sub, block[c, sub:])
            self._round(block, upper, errors, start, sub, stop)
            for c in range(len(self._work)):
                if stop < end - start:
                    passed_on = upper[c, sub:stop, stop:].T
                    block[c, stop:].addmm_(passed_on, errors[c, sub:stop], alpha=-1)
        for c, factor in enumerate(self._factors):
            self._losses[c] += errors[c].square().sum(0)
            if end < self._columns:
                passed_on = factor.upper[start:end, end:].T
                self._work[c][end:].addmm_(passed_on, errors[c], alpha=-1)

    def _open_group(self, c: int, first: int, rest: torch.Tensor) -> None:
        # Errors have reached the columns of the block only, ``rest`` being what is left of it, which is
        # all there is to see unless the group is wider than a block.
        setting = self._settings[c]
        size, count = setting.group_size, setting.groups_in_span
        opens = first % (size * count) == 0
        width = min(size * count if opens else size, self._columns - first)
        ahead, importance = self._ahead(c, first, rest, width)
        if opens:
            span = ahead.view(len(ahead), count, -1)
            self._opened[c].append(self._layers[c].opened(span, importance))
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
        return columns, self._factors[c].upper.diagonal()[first:last].reciprocal().square()

    def _round(
        self,
        block: torch.Tensor,
        upper: torch.Tensor,
        errors: torch.Tensor,
        first: int,
        start: int,
        stop: int,
    ) -> None:
        # A row's scale s and zero point z stay the same here, so that rounding is done in steps of its
        # grid, v = w / s: with r the level nearest to v, the errors are s (v - r) / U_ii, and
        # s cancels in v_j -= (v_i - r_i) U_ij / U_ii, which leaves few operations for each column.
        diagonal = upper.diagonal(dim1=1, dim2=2)[:, start:stop, None]
        ratios = upper[:, start:stop, start:stop] / diagonal
        steps = block[:, start:stop] / self._scale[:, None]
        levels, buffer = torch.empty_like(steps), torch.empty_like(steps)
        rounding = self._rounding()
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
        for part, grid in self._parts:
            codes = grid.codes(levels[part], self._zero[part][:, None])
            self._codes[part, first + start : first + stop] = codes

    def _rounding(self) -> _Rounding:
        found: _Rounding = []
        for part, grid in self._parts:
            zero = self._zero[part]
            if isinstance(grid, Integers):
                grids = [layer.scheme.grid for layer in self._layers[part]]
                bounds = [(g.lowest, g.top) for g in grids if isinstance(g, Integers)]
                lowest, top = torch.tensor(bounds, device=zero.device, dtype=zero.dtype).T[
                    ..., None
                ]
                found.append((part, partial(_nearest_integers, lowest - zero, top - zero)))
            else:
                found.append((part, partial(_nearest, grid, zero)))
        return found


def _nearest_integers(
    lowest: torch.Tensor, highest: torch.Tensor, steps: torch.Tensor, levels: torch.Tensor
) -> None:
    torch.clamp(torch.round(steps, out=levels), lowest, highest, out=levels)


def _nearest(grid: Grid, zero: torch.Tensor, steps: torch.Tensor, levels: torch.Tensor) -> None:
    levels.copy_(grid.nearest(steps.clone(), zero))


def _runs(grids: Sequence[Grid]) -> list[tuple[int, int, Grid]]:
    """Where neighbours are of one kind: first, last + 1, and one of their grids."""
    bounds = [n for n in range(len(grids)) if n == 0 or _kind(grids[n]) != _kind(grids[n - 1])]
    return [
        (first, last, grids[first])
        for first, last in zip(bounds, [*bounds[1:], len(grids)], strict=True)
    ]


def _by_columns(weights: Sequence[torch.Tensor], factors: Sequence[Factor]) -> list[torch.Tensor]:
    # [columns, rows] in the order of rounding, as copies; what several have in common is turned once.
    turned = {id(weight): weight.T.contiguous() for weight in weights}
    return [
        turned[id(weight)].clone() if factor.order is None else turned[id(weight)][factor.order]
        for weight, factor in zip(weights, factors, strict=True)
    ]


def _restore(
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    factor: Factor,
    settings: Settings,
    layer: LayerScheme,
    opened: Sequence[LayerScheme],
) -> QuantizedMatrix:
    # Back from the order of rounding, [position, row], to the order of the layer, [row, column].
    g_idx = spans = None
    if factor.order is not None:
        place = torch.empty_like(factor.order)
        place[factor.order] = torch.arange(len(place), device=place.device)
        codes = codes[place]
        if factor.groups is not None:
            back = torch.empty_like(factor.groups)
            back[factor.groups] = torch.arange(len(back), device=back.device)
            scale, zero = scale[:, back], zero[:, back]
            count = settings.groups_in_span
            spans = back[::count] // count
        elif scale.shape[1] > 1:
            g_idx = place // settings.group_size
    if g_idx is None and len(codes) % settings.group_size:
        g_idx = torch.arange(len(codes), device=codes.device) // settings.group_size
    layer = layer.joined(opened, spans)
    return layer.matrix(codes.T.contiguous(), scale.contiguous(), zero.contiguous(), g_idx)
