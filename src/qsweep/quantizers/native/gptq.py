"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): columns rounded one by one, errors passed on.

With H = X^T X of a layer's inputs and U the upper triangular factor of its inverse, H^-1 = U^T U,
column i is rounded and the error e = (w_i - q_i) / U_ii is taken from the columns that follow,
w_j -= e U_ij. The sum of e^2 is then the loss tr((W - Q) H (W - Q)^T).
"""

from dataclasses import dataclass

import torch

from qsweep.base.errors import TrialFailed

_BLOCK = 128


@dataclass(frozen=True)
class Settings:
    """How GPTQ treats one layer.

    Attributes:
        group_size: Inputs that share a scale, at most as many as there are.
        desc_act: The most active columns first, groups being what is then found together.
        act_group_aware: The same within groups, and the groups by their most active column.
        damp_percent: Share of the mean diagonal that is added to the Gram matrix.
        gptaq_alpha: How far weights are moved to make up for what was done to their inputs.
        span: Inputs whose scales hang together, a multiple of ``group_size``; 0: those of a group.
        static: The most active columns first, under scales that were found before, of groups as they
            stand: an order that leaves no trace.
    """

    group_size: int
    desc_act: bool
    act_group_aware: bool
    damp_percent: float
    gptaq_alpha: float = 0.0
    span: int = 0
    static: bool = False

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
    if settings.desc_act or settings.static:
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
