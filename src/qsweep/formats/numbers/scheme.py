"""How the weights of a layer become codes: a grid, scales, and what shares a scale."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from qsweep.formats.numbers.grids import E4M3, Grid
from qsweep.formats.numbers.scales import E8M0_SCALE, FloatScale, ScaleType
from qsweep.formats.numbers.searches import Search
from qsweep.formats.packing import QuantizedMatrix

# Exponent of the error: rare large weights count for less than by squares (IST-DASLab/gptq).
_NORM = 2.4
# Where a scale is a mean of magnitudes, the best one is mostly larger.
_OF_A_MEAN = (1.0, *(1 + step / 10 for step in range(1, 16)), 0.9, 0.8)


@dataclass(frozen=True)
class Scheme:
    """How weights become codes.

    Attributes:
        grid: The levels.
        group_size: Consecutive inputs that share a scale; -1 for all.
        scale: What a scale may be.
        rows: Consecutive outputs that share a scale; -1 for all.
        search: ``range`` takes a group's extremes; ``mse`` scales them so that the sum of
            |error|^2.4 is least; ``loss`` so that the weighted square error is least.
        extreme: What of a group is put on the largest level: its ``largest`` magnitude, or the
            ``mean`` of all.
    """

    grid: Grid
    group_size: int = -1
    scale: ScaleType = field(default_factory=FloatScale)
    rows: int = 1
    search: Search = "range"
    extreme: Literal["largest", "mean"] = "largest"

    @property
    def shares(self) -> tuple[float, ...]:
        """What a search multiplies a group's extreme with; the first is what is taken without one."""
        return _OF_A_MEAN if self.extreme == "mean" else self.scale.shares

    @property
    def clips(self) -> tuple[float, ...]:
        """What AWQ's clipping multiplies it with."""
        return _OF_A_MEAN if self.extreme == "mean" else self.scale.clips

    @property
    def waits(self) -> bool:
        """Whether GPTQ had better find a group's scale when it comes to the group.

        A scale that is searched then knows what errors have left. Where none is, or where scales are
        coarse beside levels, it gains nothing, and columns may come in any order instead
        (docs/parity.md).
        """
        coarse = self.scale is E8M0_SCALE or self.grid is E4M3
        return self.search != "range" and not coarse

    @property
    def sym(self) -> bool:
        """Whether levels lie about 0."""
        return bool(getattr(self.grid, "sym", True))

    def groups(self, channels: int) -> int:
        """Inputs that share a scale in a layer of so many."""
        return channels if self.group_size == -1 else self.group_size

    def span(self, channels: int) -> int:
        """Inputs of which scales hang together, some groups' as a rule; here a group's."""
        return self.groups(channels)

    def layers(self, weights: Sequence[torch.Tensor]) -> list["LayerScheme"]:
        """The scheme for layers [outputs, inputs] that share their input.

        Where there are global scales, they have one: runtimes that fuse such layers (q, k and v,
        gate and up) have one number for all of them.
        """
        extreme = torch.stack([weight.abs().amax() for weight in weights]).amax()
        whole = self.scale.whole(extreme.to(torch.float32), self.grid.largest)
        return [
            LayerScheme(self, len(weight), whole, self._spans(len(weight))) for weight in weights
        ]

    def _spans(self, rows: int) -> tuple[int, ...] | None:
        if self.rows == 1:
            return None
        size = rows if self.rows == -1 else self.rows
        return tuple(min(size, rows - start) for start in range(0, rows, size))


@dataclass(frozen=True)
class LayerScheme:
    """A scheme for the rows of one layer, or of several, one below the other.

    Attributes:
        scheme: The scheme.
        rows: How many outputs.
        whole: The global scale, float32 [], or that of each row [rows, 1]; None where there is none.
        spans: Where rows share scales, how many consecutive ones do.
    """

    scheme: Scheme
    rows: int
    whole: torch.Tensor | None = None
    spans: tuple[int, ...] | None = None

    def opened(
        self, weights: torch.Tensor, importance: torch.Tensor | None = None
    ) -> "LayerScheme":
        """The scheme for the groups of a span, with what their scales have in common.

        Args:
            weights: All of the span, float32 [rows, groups, n].
            importance: Weight of each squared error, [groups * n].
        """
        return self

    def joined(self, spans: Sequence["LayerScheme"], order: torch.Tensor | None) -> "LayerScheme":
        """The scheme of all spans, of which ``order`` [spans] says where each is found; None: in turn."""
        return self

    def matrix(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor,
        g_idx: torch.Tensor | None = None,
    ) -> QuantizedMatrix:
        """Codes [rows, columns] with their scales and zero points [rows, groups] as a matrix."""
        table = self.scheme.grid.table
        return QuantizedMatrix(codes, zero.to(torch.uint8), scale, g_idx, table, self.whole)

    def find(
        self, weights: torch.Tensor, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point of each group.

        Args:
            weights: float32 [rows, groups, n].
            importance: Weight of each of the n squared errors, for ``search="loss"``.

        Returns:
            Scales as they will be stored, and zero points, whole numbers; float32 [rows, groups].
        """
        low, high = self.extent(weights)
        scale, zero = self.at(low, high)
        if self.scheme.search == "range":
            return scale, zero
        best = self._error(weights, scale, zero, importance)
        for share in self.scheme.shares[1:]:
            new_scale, new_zero = self.at(low * share, high * share)
            error = self._error(weights, new_scale, new_zero, importance)
            better = error < best
            best = torch.where(better, error, best)
            scale = torch.where(better, new_scale, scale)
            zero = torch.where(better, new_zero, zero)
        return scale, zero

    def extent(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest value of each group [rows, groups, n], between which 0 always lies.

        Both [rows, groups], equal in rows that share a scale.
        """
        if self.scheme.extreme == "mean":
            high = self._shared(weights.abs().mean(-1), torch.mean)
            return -high, high
        low = self._shared(weights.amin(-1).clamp(max=0), torch.amin)
        high = self._shared(weights.amax(-1).clamp(min=0), torch.amax)
        if self.scheme.sym:
            high = torch.maximum(high, -low)
            low = -high
        return low, high

    def at(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point of groups that reach from ``low`` <= 0 to ``high`` >= 0, all [rows, groups]."""
        scheme = self.scheme
        scale = scheme.scale.of((high - low) / 2, scheme.grid.largest, self.whole)
        scale = torch.where(high == low, self._of_nothing(), scale)
        return scale, scheme.grid.zero(low, scale)

    def rounded(
        self, weights: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
    ) -> torch.Tensor:
        """The nearest weights [rows, groups, n] on grids with these scales and zero points [rows, groups]."""
        scale, zero = scale[..., None], zero[..., None]
        return self.scheme.grid.nearest(weights / scale, zero).mul_(scale)

    def codes(self, weights: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """Their codes, uint8 [rows, groups, n]."""
        grid, zero = self.scheme.grid, zero[..., None]
        return grid.codes(grid.nearest(weights / scale[..., None], zero), zero)

    def share(self, errors: torch.Tensor) -> torch.Tensor:
        """Errors [rows, groups] summed over the rows that share a scale, and given to each of them."""
        return self._shared(errors, torch.sum)

    def _error(
        self,
        weights: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor,
        importance: torch.Tensor | None,
    ) -> torch.Tensor:
        difference = self.rounded(weights, scale, zero).sub_(weights)
        if self.scheme.search == "mse" or importance is None:
            return self.share(difference.abs_().pow_(_NORM).sum(-1))
        return self.share(difference.square_().mul_(importance).sum(-1))

    def _shared(self, values: torch.Tensor, reduce: Callable[..., Any]) -> torch.Tensor:
        if self.spans is None:
            return values
        parts = [reduce(part, 0, keepdim=True) for part in values.split(self.spans)]
        sizes = torch.tensor(self.spans, device=values.device)
        return torch.cat(parts).repeat_interleave(sizes, 0)

    def _of_nothing(self) -> float | torch.Tensor:
        # Groups of zeros: any scale does that can be stored.
        return 1.0 if self.whole is None else 1.0 / self.whole


def stacked(layers: Sequence[LayerScheme]) -> LayerScheme:
    """The scheme of layers that stand one below the other."""
    first = layers[0]
    if len(layers) == 1:
        return first
    spans = None
    if first.spans is not None:
        spans = tuple(span for layer in layers for span in layer.spans or ())
    wholes = [layer.whole.expand(layer.rows, 1) for layer in layers if layer.whole is not None]
    whole = torch.cat(wholes) if wholes else None
    return replace(first, rows=sum(layer.rows for layer in layers), whole=whole, spans=spans)
