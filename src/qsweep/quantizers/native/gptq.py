"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): columns rounded one by one, errors passed on.

With H = X^T X of a layer's inputs and U the upper triangular factor of its inverse, H^-1 = U^T U,
column i is rounded and the error e = (w_i - q_i) / U_ii is taken from the columns that follow,
w_j -= e U_ij. The sum of e^2 is then the loss tr((W - Q) H (W - Q)^T).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qsweep.base.errors import TrialFailed
from qsweep.formats.packing import QuantizedMatrix
from qsweep.quantizers.native.rounding import Scheme, find_grid

# Columns that are updated together after their errors are known, outer and inner.
_BLOCK = 128
_SUB_BLOCK = 32


@dataclass(frozen=True)
class Settings:
    """How GPTQ treats one layer; ``group_size`` is at most the layer's number of inputs."""

    scheme: Scheme
    group_size: int
    desc_act: bool
    act_group_aware: bool
    damp_percent: float
    gptaq_alpha: float = 0.0


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
    grouped = diagonal.view(-1, settings.group_size)
    within = grouped.argsort(dim=1, descending=True, stable=True)
    groups = grouped.amax(1).argsort(dim=0, descending=True, stable=True)
    first = torch.arange(len(grouped), device=diagonal.device)[:, None] * settings.group_size
    return (within + first)[groups].flatten(), groups


def solve(
    weights: Sequence[torch.Tensor], factors: Sequence[Factor], settings: Sequence[Settings]
) -> list[tuple[QuantizedMatrix, torch.Tensor]]:
    """Quantize one matrix, or matrices of one shape side by side.

    Args:
        weights: float32 [rows, columns], one for each configuration; they are not changed.
        factors: The factor that each is to be quantized with.
        settings: The settings of each.

    Returns:
        For each configuration the matrix, and the loss of each row, float32 [rows].

    What a configuration gets does not depend on its neighbours: only elementwise operations run
    over all of them, sums and matrix products are made for each by itself.
    """
    rows, columns = weights[0].shape
    work = _by_columns(weights, factors)
    count, device = len(work), work[0].device
    codes = torch.empty(count, columns, rows, dtype=torch.uint8, device=device)
    losses = [torch.zeros(rows, device=device) for _ in work]
    scale, zero = torch.empty(2, count, rows, device=device)
    top = torch.tensor([[s.scheme.top] for s in settings], device=device, dtype=torch.float32)
    scales: list[list[torch.Tensor]] = [[] for _ in work]
    zeros: list[list[torch.Tensor]] = [[] for _ in work]

    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        block = torch.stack([matrix[start:end] for matrix in work])
        upper = torch.stack([factor.upper[start:end, start:end] for factor in factors])
        errors = torch.empty_like(block)
        for sub in range(0, end - start, _SUB_BLOCK):
            stop = min(sub + _SUB_BLOCK, end - start)
            for c, setting in enumerate(settings):
                if (start + sub) % setting.group_size == 0:
                    first = start + sub
                    last = min(first + setting.group_size, columns)
                    # The errors of this block have reached this block's own columns only, which
                    # is all there is to see unless the group is wider than a block.
                    inside = block[c, sub : sub + setting.group_size]
                    group = torch.cat([inside, work[c][first + len(inside) : last]]).T.contiguous()
                    importance = factors[c].upper.diagonal()[first:last].reciprocal().square()
                    scale[c], zero[c] = find_grid(group, setting.scheme, importance)
                    scales[c].append(scale[c].clone())
                    zeros[c].append(zero[c].to(torch.uint8))
            _columns(block, upper, errors, codes[:, start:end], scale, zero, top, sub, stop)
            for c in range(count):
                if stop < end - start:
                    passed_on = upper[c, sub:stop, stop:].T
                    block[c, stop:].addmm_(passed_on, errors[c, sub:stop], alpha=-1)
        for c, factor in enumerate(factors):
            losses[c] += errors[c].square().sum(0)
            if end < columns:
                work[c][end:].addmm_(factor.upper[start:end, end:].T, errors[c], alpha=-1)
    return [
        (_restore(codes[c], scales[c], zeros[c], factors[c], settings[c]), losses[c])
        for c in range(count)
    ]


def _by_columns(weights: Sequence[torch.Tensor], factors: Sequence[Factor]) -> list[torch.Tensor]:
    # [columns, rows] in the order of rounding, as copies; what several have in common is turned once.
    turned = {id(weight): weight.T.contiguous() for weight in weights}
    return [
        turned[id(weight)].clone() if factor.order is None else turned[id(weight)][factor.order]
        for weight, factor in zip(weights, factors, strict=True)
    ]


def _columns(
    block: torch.Tensor,
    upper: torch.Tensor,
    errors: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    top: torch.Tensor,
    start: int,
    stop: int,
) -> None:
    # A row's scale s and zero point z stay the same here, so that rounding is done in steps of its
    # grid, v = w / s: with r = round(v) between -z and top - z, the errors are s (v - r) / U_ii, and
    # s cancels in v_j -= (v_i - r_i) U_ij / U_ii, which leaves few operations for each column.
    diagonal = upper.diagonal(dim1=1, dim2=2)[:, start:stop, None]
    ratios = upper[:, start:stop, start:stop] / diagonal
    steps = block[:, start:stop] / scale[:, None]
    rounded, buffer = torch.empty_like(steps), torch.empty_like(steps)
    lowest, highest = -zero, top - zero
    for column in range(stop - start):
        left, code = steps[:, column], rounded[:, column]
        torch.clamp(torch.round(left, out=code), lowest, highest, out=code)
        left -= code
        if column + 1 < stop - start:
            # Multiplication and subtraction stay two operations: fused, their rounding could depend
            # on where in memory a configuration lies.
            update = buffer[:, column + 1 :]
            torch.mul(ratios[:, column, column + 1 :, None], left[:, None], out=update)
            steps[:, column + 1 :] -= update
    codes[:, start:stop] = rounded.add_(zero[:, None])
    torch.mul(steps, scale[:, None], out=errors[:, start:stop]).div_(diagonal)


def _restore(
    codes: torch.Tensor,
    scales: list[torch.Tensor],
    zeros: list[torch.Tensor],
    factor: Factor,
    settings: Settings,
) -> QuantizedMatrix:
    # Back from the order of rounding, [position, row], to the order of the layer, [row, column].
    scale, zero, g_idx = torch.stack(scales, 1), torch.stack(zeros, 1), None
    if factor.order is not None:
        place = torch.empty_like(factor.order)
        place[factor.order] = torch.arange(len(place), device=place.device)
        codes = codes[place]
        if factor.groups is not None:
            back = torch.empty_like(factor.groups)
            back[factor.groups] = torch.arange(len(back), device=back.device)
            scale, zero = scale[:, back], zero[:, back]
        elif scale.shape[1] > 1:
            g_idx = place // settings.group_size
    return QuantizedMatrix(codes.T.contiguous(), zero.contiguous(), scale.contiguous(), g_idx)
