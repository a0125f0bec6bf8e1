"""Scales, zero points and codes of groups of weights: weight = scale * (code - zero)."""

from dataclasses import dataclass
from typing import Literal

import torch

Search = Literal["range", "mse", "loss"]

# Shares of the full range that a search tries, the full range first, so that ties keep it.
_SHRINK = tuple(1 - step / 40 for step in range(25))
# Exponent of the error: rare large weights count for less than by squares (IST-DASLab/gptq).
_NORM = 2.4
# Scales are stored in float16; this is its smallest positive number.
_TINY = 2.0**-24


@dataclass(frozen=True)
class Scheme:
    """How a group of weights becomes codes.

    Attributes:
        bits: 2 to 8.
        sym: Whether the zero point is fixed at 2^(bits-1), so that the range is symmetric.
        search: ``range`` takes the group's extremes; ``mse`` shrinks them so that the sum of
            |error|^2.4 is least; ``loss`` so that the weighted square error is least.
    """

    bits: int
    sym: bool
    search: Search = "range"

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1


def find_grid(
    weights: torch.Tensor, scheme: Scheme, importance: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of each group.

    Args:
        weights: float32 [..., n], a group in the last dimension.
        scheme: Bits, symmetry and search.
        importance: Weight of each of the n squared errors, for ``search="loss"``.

    Returns:
        Scales, float32 values that float16 holds exactly, and zero points, integers in float32,
        both [...].
    """
    low, high = extent(weights, scheme)
    scale, zero = grid_of(low, high, scheme)
    if scheme.search == "range":
        return scale, zero
    best = _error(weights, scale, zero, scheme, importance)
    for share in _SHRINK[1:]:
        new_scale, new_zero = grid_of(low * share, high * share, scheme)
        error = _error(weights, new_scale, new_zero, scheme, importance)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, new_scale, scale)
        zero = torch.where(better, new_zero, zero)
    return scale, zero


def encode(
    weights: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int
) -> torch.Tensor:
    """The nearest codes.

    Args:
        weights: float32 [..., n].
        scale: Scales that broadcast against it.
        zero: Zero points that broadcast against it.
        top: The largest code.

    Returns:
        0..top, float32 [..., n].
    """
    return (weights / scale).round_().add_(zero).clamp_(0, top)


def extent(weights: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest value of each group [..., n], which 0 always lies between, both [...]."""
    low = weights.amin(-1).clamp(max=0)
    high = weights.amax(-1).clamp(min=0)
    if scheme.sym:
        high = torch.maximum(high, -low)
        low = -high
    return low, high


def grid_of(
    low: torch.Tensor, high: torch.Tensor, scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of groups that reach from ``low`` <= 0 to ``high`` >= 0, both [...]."""
    empty = high == low
    scale = ((high - low) / scheme.top).clamp_(_TINY, 65504.0)
    # Codes must be chosen for the scale that is stored.
    scale = torch.where(empty, 1.0, scale).to(torch.float16).to(torch.float32)
    if scheme.sym:
        return scale, torch.full_like(scale, 2 ** (scheme.bits - 1))
    return scale, (-low / scale).round_().clamp_(0, scheme.top)


def _error(
    weights: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    scheme: Scheme,
    importance: torch.Tensor | None,
) -> torch.Tensor:
    scale, zero = scale[..., None], zero[..., None]
    difference = encode(weights, scale, zero, scheme.top).sub_(zero).mul_(scale).sub_(weights)
    if scheme.search == "mse" or importance is None:
        return difference.abs_().pow_(_NORM).sum(-1)
    return difference.square_().mul_(importance).sum(-1)
