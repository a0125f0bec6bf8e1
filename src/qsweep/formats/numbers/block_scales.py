"""The search for the scales of llama.cpp's blocks: least squares in turns with the codes.

Everywhere, weights are float32 [rows, groups, n] of one span, and ``weigh`` [groups or 1, n] is what
their squared errors weigh. Scale s and offset o of a group are those of weight = s * code - o.
"""

from dataclasses import dataclass

import torch

from qsweep.formats.numbers.block_types import BlockType

# Of a group's range, what a search begins with; each is then improved by least squares.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 1.05, 1.1)
# Steps of a group's whole scale about the nearest.
_NEIGHBOURS = (-1, 0, 1)
# How often a super-block's scales and its groups' numbers are improved in turns.
_ROUNDS = 3
_LEAST, _MOST = 2.0**-24, 65504.0  # of float16


@dataclass(frozen=True)
class Inner:
    """Whole scales and minima [rows, groups], the weights' codes, and what the errors come to."""

    scale: torch.Tensor
    minimum: torch.Tensor
    levels: torch.Tensor
    error: torch.Tensor


def weights_of(weights: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    """What the squared errors weigh, of which GPTQ's own numbers may be tiny or huge: about 1 on average.

    Args:
        weights: float32 [rows, groups, n].
        importance: [groups * n], or of one group; None: all weigh alike.
    """
    if importance is None:
        return torch.ones_like(weights[0])
    found = importance.reshape(-1, weights.shape[-1])
    return found / found.mean().clamp(min=torch.finfo(torch.float32).tiny)


def ideal(
    weights: torch.Tensor, weigh: torch.Tensor, type_: BlockType
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset [rows, groups] with the least weighted error, as if any number could be stored.

    weight = scale * code - offset, or scale * (code - middle) where there is no minimum.
    """
    return (_ideal_affine if type_.minimum else _ideal_even)(weights, weigh, type_)


def _ideal_affine(
    weights: torch.Tensor, weigh: torch.Tensor, type_: BlockType
) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = weights.amin(-1), weights.amax(-1)
    if type_.scales is not None:  # minima are not negative
        low, high = low.clamp(max=0), high.clamp(min=0)
    reach = (high - low) / type_.top
    scale, offset = reach.clamp(min=_LEAST), -low
    best, first, firsts = None, scale, offset
    sums = weigh.sum(-1), (weights * weigh).sum(-1)
    for share in _SHARES:
        tried = first * share, firsts * share
        for _ in range(2):
            codes = _codes(weights, *tried, type_.top)
            tried = _line(weights, weigh, codes, sums, tried, bound=type_.scales is not None)
        error = _error(weights, weigh, codes, *tried)
        if best is None:
            best, scale, offset = error, *tried
            continue
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, tried[0], scale)
        offset = torch.where(better, tried[1], offset)
    return scale, offset


def _ideal_even(
    weights: torch.Tensor, weigh: torch.Tensor, type_: BlockType
) -> tuple[torch.Tensor, torch.Tensor]:
    place = weights.abs().argmax(-1, keepdim=True)
    extreme = weights.gather(-1, place)[..., 0]
    # The extreme on the lowest level, of which there is one more than above 0.
    first = extreme / -type_.middle
    first = torch.where(first.abs() < _LEAST, _LEAST, first)
    scale, best = first, None
    for share in _SHARES:
        tried = first * share
        for _ in range(2):
            levels = _codes(weights, tried, tried * type_.middle, type_.top) - type_.middle
            weighted = levels * weigh
            power = (weighted * levels).sum(-1)
            found = (weighted * weights).sum(-1) / power
            tried = torch.where(power > 0, found, tried)
            tried = torch.where(tried.abs() < _LEAST, _LEAST, tried)
        error = _error(weights, weigh, levels, tried, torch.zeros_like(tried))
        if best is None:
            best, scale = error, tried
            continue
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, tried, scale)
    return scale, scale * type_.middle


def find_outer(
    weights: torch.Tensor,
    weigh: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    type_: BlockType,
) -> torch.Tensor:
    """d and dmin [rows, 2] for the groups of a span, as float16 has them."""
    if type_.scales is None:
        return torch.cat([_stored(scale), _stored(offset if type_.minimum else scale)], 1)
    lowest, highest = type_.scales
    if lowest < 0:
        place = scale.abs().argmax(-1, keepdim=True)
        d = _stored(scale.gather(-1, place) / lowest)
    else:
        d = _stored(scale.amax(-1, keepdim=True) / highest)
    dmin = _stored(offset.amax(-1, keepdim=True) / type_.minimum) if type_.minimum else d
    best = torch.cat([d, dmin], 1)
    least: torch.Tensor | None = None
    tried = best
    for _ in range(_ROUNDS):
        inner = find_inner(weights, weigh, scale, offset, tried, type_)
        error = inner.error.sum(-1)
        better = torch.ones_like(error, dtype=torch.bool) if least is None else error < least
        least = error if least is None else torch.where(better, error, least)
        best = torch.where(better[:, None], tried, best)
        tried = _refit(weights, weigh, inner, tried, type_)
    return best


def find_inner(
    weights: torch.Tensor,
    weigh: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    outer: torch.Tensor,
    type_: BlockType,
) -> Inner:
    """The groups' whole numbers near their ideal ones, with codes chosen anew for each tried."""
    d, dmin = outer[:, :1], outer[:, 1:]
    assert type_.scales is not None
    lowest, highest = type_.scales
    near = (scale / d).round_()
    total = weigh.sum(-1)
    sum_weights = (weights * weigh).sum(-1)
    best: Inner | None = None
    for step in _NEIGHBOURS:
        whole = (near + step).clamp_(lowest, highest)
        # A scale of nothing divides by it, and 1 with all codes 0 does as well.
        whole = torch.where(whole == 0, 1.0, whole)
        tried = d * whole
        if type_.minimum:
            codes = _codes(weights, tried, offset, type_.top)
            found = (tried * (codes * weigh).sum(-1) - sum_weights) / total
            minimum = (found / dmin).round_().clamp_(0, type_.minimum)
            shift = minimum * dmin
            codes = _codes(weights, tried, shift, type_.top)
            error = _error(weights, weigh, codes, tried, shift)
        else:
            minimum = torch.zeros_like(whole)
            codes = _codes(weights, tried, tried * type_.middle, type_.top) - type_.middle
            error = _error(weights, weigh, codes, tried, minimum)
        new = Inner(whole, minimum, codes, error)
        best = new if best is None else _better(best, new)
    assert best is not None
    return best


def _better(one: Inner, other: Inner) -> Inner:
    better = other.error < one.error
    return Inner(
        torch.where(better, other.scale, one.scale),
        torch.where(better, other.minimum, one.minimum),
        torch.where(better[..., None], other.levels, one.levels),
        torch.where(better, other.error, one.error),
    )


def _refit(
    weights: torch.Tensor,
    weigh: torch.Tensor,
    inner: Inner,
    outer: torch.Tensor,
    type_: BlockType,
) -> torch.Tensor:
    # d and dmin by least squares, all whole numbers given: weight = d * (scale * code) - dmin * minimum.
    first = inner.scale[..., None] * inner.levels
    weighted = first * weigh
    power, product = (weighted * first).sum((-1, -2)), (weighted * weights).sum((-1, -2))
    if not type_.minimum:
        found = torch.where(power > 0, product / power, outer[:, 0])
        return _stored(found[:, None]).expand(-1, 2)
    minima = inner.minimum
    total = weigh.sum(-1)
    cross = (weighted.sum(-1) * minima).sum(-1)
    square = (minima.square() * total).sum(-1)
    other = ((weights * weigh).sum(-1) * minima).sum(-1)
    determinant = power * square - cross.square()
    d = (product * square - other * cross) / determinant
    dmin = (product * cross - other * power) / determinant
    usable = (determinant > 1e-6 * power * square) & (d > 0) & (dmin > 0)
    found = torch.stack([d, dmin], 1)
    return _stored(torch.where(usable[:, None], found, outer))


def _line(
    weights: torch.Tensor,
    weigh: torch.Tensor,
    codes: torch.Tensor,
    sums: tuple[torch.Tensor, torch.Tensor],
    before: tuple[torch.Tensor, torch.Tensor],
    *,
    bound: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The line weight = scale * code - offset through given codes by weighted least squares.

    With ``bound`` offsets are not negative. ``sums`` are those of the weights of the errors, and of
    the weights times these; ``before`` stands where no line is found.
    """
    total, first = sums
    weighted = codes * weigh
    code, power, product = (
        weighted.sum(-1),
        (weighted * codes).sum(-1),
        (weighted * weights).sum(-1),
    )
    determinant = total * power - code.square()
    scale = (total * product - code * first) / determinant
    offset = (code * product - power * first) / determinant
    if bound:
        through = product / power
        below = offset < 0
        scale = torch.where(below, through, scale)
        offset = offset.clamp(min=0)
    usable = (determinant > 1e-6 * total * power) & (scale > _LEAST)
    return torch.where(usable, scale, before[0]), torch.where(usable, offset, before[1])


def _codes(
    weights: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, top: int
) -> torch.Tensor:
    return (weights + offset[..., None]).div_(scale[..., None]).round_().clamp_(0, top)


def _error(
    weights: torch.Tensor,
    weigh: torch.Tensor,
    levels: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
) -> torch.Tensor:
    difference = levels * scale[..., None] - offset[..., None]
    return difference.sub_(weights).square_().mul_(weigh).sum(-1)


def _stored(numbers: torch.Tensor) -> torch.Tensor:
    # As float16; what vanishes becomes the least that does not.
    sizes = numbers.abs().clamp(_LEAST, _MOST).to(torch.float16).to(torch.float32)
    return torch.where(numbers < 0, -sizes, sizes)
