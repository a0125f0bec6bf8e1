"""llama.cpp's blocks: groups of whole numbers whose scales are themselves whole numbers of few bits.

K-quants (https://github.com/ggml-org/llama.cpp/pull/1684, ``ggml-common.h``) put 256 weights into a
*super-block* of groups of 16 or 32. Group g of a super-block stands for

    weight = d * scale_g * code - dmin * minimum_g      (Q2_K, Q4_K, Q5_K)
    weight = d * scale_g * (code - 2^(bits-1))          (Q3_K, Q6_K)

with whole numbers scale_g and minimum_g, and with d and dmin in float16. Older types are blocks of 32
with one scale in float16, and in Q5_1 a minimum beside it.

d and dmin are chosen when a super-block is opened, from all weights in it; a group's own two numbers
when GPTQ comes to the group, so that they know of the errors that were passed on until then.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from qsweep.formats.numbers.grids import Grid
from qsweep.formats.numbers.scheme import LayerScheme, Scheme
from qsweep.formats.packing import QuantizedMatrix

# Of a group's range, what a search begins with; each is then improved by least squares.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 1.05, 1.1)
# Steps of a group's whole scale about the nearest.
_NEIGHBOURS = (-1, 0, 1)
# How often a super-block's scales and its groups' numbers are improved in turns.
_ROUNDS = 3
_LEAST, _MOST = 2.0**-24, 65504.0  # of float16


@dataclass(frozen=True)
class BlockType:
    """A tensor type of llama.cpp's that is solved here.

    Attributes:
        name: As ``ggml.h`` has it, in capitals.
        bits: Of a code.
        group: Weights that share a scale.
        span: Weights that share d and dmin; a multiple of ``group``.
        scales: Lowest and highest whole scale of a group; None where a group is a span.
        minimum: The highest whole minimum; 0: there is none, and levels lie about 0. A span that is
            a group has a minimum of its own in float16 where this is above 0.
    """

    name: str
    bits: int
    group: int
    span: int
    scales: tuple[int, int] | None = None
    minimum: int = 0

    @property
    def top(self) -> int:
        """The highest code."""
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """The code of 0, where there is no minimum."""
        return 2 ** (self.bits - 1)


BLOCK_TYPES = {
    type_.name: type_
    for type_ in (
        BlockType("Q2_K", 2, 16, 256, (0, 15), 15),
        BlockType("Q3_K", 3, 16, 256, (-32, 31)),
        BlockType("Q4_K", 4, 32, 256, (0, 63), 63),
        BlockType("Q5_K", 5, 32, 256, (0, 63), 63),
        BlockType("Q6_K", 6, 16, 256, (-128, 127)),
        BlockType("Q4_0", 4, 32, 32),
        BlockType("Q5_0", 5, 32, 32),
        BlockType("Q5_1", 5, 32, 32, minimum=1),
        BlockType("Q8_0", 8, 32, 32),
    )
}
# What llama.cpp takes for rows that super-blocks do not divide.
FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


@dataclass(frozen=True)
class Steps(Grid):
    """Codes from 0 to ``top``, less a zero point that need not be whole."""

    top: int

    @property
    def largest(self) -> float:  # type: ignore[override]
        """Half of what the codes span."""
        return self.top / 2

    def nearest(self, steps: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See :meth:`Grid.nearest`."""
        return steps.add_(zero).round_().clamp_(0, self.top).sub_(zero)

    def codes(self, levels: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """See :meth:`Grid.codes`."""
        return levels.add_(zero).round_().to(torch.uint8)


@dataclass(frozen=True)
class BlockMatrix(QuantizedMatrix):
    """A matrix in blocks: ``scales`` and ``zeros`` are the groups' own whole numbers.

    Attributes:
        type: The type of its blocks.
        outer: d and dmin as they are stored, float32 [out, spans, 2].
    """

    type: BlockType = BLOCK_TYPES["Q4_K"]
    outer: torch.Tensor = torch.empty(0)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """See :meth:`QuantizedMatrix.dense`; each product is exact, so that the order is no matter."""
        rows, columns = self.codes.shape
        spans = columns // self.type.span
        codes = self.codes.to(torch.float32).view(rows, spans, -1, self.type.group)
        scales = self.scales.to(torch.float32).view(rows, spans, -1) * self.outer[..., :1]
        if not self.type.minimum:
            return codes.sub_(self.type.middle).mul_(scales[..., None]).view(rows, -1).to(dtype)
        minima = self.zeros.to(torch.float32).view(rows, spans, -1) * self.outer[..., 1:]
        return codes.mul_(scales[..., None]).sub_(minima[..., None]).view(rows, -1).to(dtype)

    def rows(self, which: slice) -> "BlockMatrix":
        """Some of its rows."""
        found = super().rows(which)
        assert isinstance(found, BlockMatrix)
        return replace(found, outer=self.outer[which])


@dataclass(frozen=True)
class BlockScheme(Scheme):
    """Blocks of one type, or of the one that llama.cpp falls back on. Scales are always searched."""

    type: BlockType = BLOCK_TYPES["Q4_K"]

    def type_of(self, channels: int) -> BlockType:
        """The type of layers of so many inputs, a multiple of 32."""
        fallback = FALLBACKS.get(self.type.name)
        if channels % self.type.span == 0 or fallback is None:
            return self.type
        return BLOCK_TYPES[fallback]

    def groups(self, channels: int) -> int:
        """See :meth:`Scheme.groups`."""
        return self.type_of(channels).group

    def span(self, channels: int) -> int:
        """See :meth:`Scheme.span`."""
        return self.type_of(channels).span

    def layers(self, weights: Sequence[torch.Tensor]) -> list[LayerScheme]:
        """See :meth:`Scheme.layers`."""
        return [self._layer(*weight.shape) for weight in weights]

    def _layer(self, rows: int, columns: int) -> "BlockLayer":
        type_ = self.type_of(columns)
        scheme = replace(self, type=type_, grid=Steps(type_.top), group_size=type_.group)
        return BlockLayer(scheme, rows)

    def rounded(self, weight: torch.Tensor) -> BlockMatrix:
        """A matrix [out, in] rounded to nearest, float32."""
        rows, columns = weight.shape
        layer = self._layer(rows * columns // self.span(columns), columns)
        grouped = weight.reshape(layer.rows, -1, self.groups(columns))
        opened = layer.opened(grouped)
        scale, zero = opened.find(grouped)
        codes = opened.codes(grouped, scale, zero).view(rows, columns)
        assert opened.whole is not None
        whole = replace(opened, rows=rows, whole=opened.whole.view(rows, -1, 2))
        return whole.matrix(codes, scale.view(rows, -1), zero.view(rows, -1))


def block_scheme(name: str) -> BlockScheme:
    """The scheme of a type by its name."""
    type_ = BLOCK_TYPES[name]
    return BlockScheme(Steps(type_.top), type_.group, search="loss", type=type_)


@dataclass(frozen=True)
class BlockLayer(LayerScheme):
    """Blocks for the rows of a layer; ``whole`` is d and dmin, float32 [rows, spans, 2]."""

    @property
    def type(self) -> BlockType:
        """The type of the blocks."""
        assert isinstance(self.scheme, BlockScheme)
        return self.scheme.type

    def opened(self, weights: torch.Tensor, importance: torch.Tensor | None = None) -> "BlockLayer":
        """See :meth:`LayerScheme.opened`."""
        weigh = _weights_of(weights, importance)
        scale, offset = _ideal(weights, weigh, self.type)
        return replace(self, whole=_outer(weights, weigh, scale, offset, self.type)[:, None])

    def joined(self, spans: Sequence[LayerScheme], order: torch.Tensor | None) -> "BlockLayer":
        """See :meth:`LayerScheme.joined`."""
        whole = torch.cat([span.whole for span in spans if span.whole is not None], 1)
        return replace(self, whole=whole if order is None else whole[:, order])

    def find(
        self, weights: torch.Tensor, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`LayerScheme.find`; the groups lie in the span that was opened last."""
        assert self.whole is not None
        outer = self.whole[:, -1]
        if self.type.scales is None:
            scale = outer[:, :1]
            zero = outer[:, 1:] / scale if self.type.minimum else None
            return scale, torch.full_like(scale, self.type.middle) if zero is None else zero
        weigh = _weights_of(weights, importance)
        inner = _inner(weights, weigh, *_ideal(weights, weigh, self.type), outer, self.type)
        scale = inner.scale * outer[:, :1]
        if not self.type.minimum:
            return scale, torch.full_like(scale, self.type.middle)
        return scale, inner.minimum * outer[:, 1:] / scale

    def matrix(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor,
        g_idx: torch.Tensor | None = None,
    ) -> BlockMatrix:
        """See :meth:`LayerScheme.matrix`."""
        assert self.whole is not None
        rows, spans, _ = self.whole.shape
        outer_scale, outer_minimum = self.whole[..., :1], self.whole[..., 1:]
        scales = scale.view(rows, spans, -1)
        inner = (scales / outer_scale).round_()
        minima = (zero.view_as(scales) * scales / outer_minimum).round_()
        if not self.type.minimum:
            minima.zero_()
        return BlockMatrix(
            codes,
            minima.view(rows, -1).to(torch.uint8),
            inner.view(rows, -1).to(torch.int16),
            type=self.type,
            outer=self.whole,
        )


@dataclass(frozen=True)
class _Inner:
    """Whole scales and minima [rows, groups], the weights' codes, and what the errors come to."""

    scale: torch.Tensor
    minimum: torch.Tensor
    levels: torch.Tensor
    error: torch.Tensor


def _weights_of(weights: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    # Of each squared error, [groups or 1, n]; GPTQ's numbers are tiny or huge, of which the scale is
    # no matter.
    if importance is None:
        return torch.ones_like(weights[0])
    found = importance.reshape(-1, weights.shape[-1])
    return found / found.mean().clamp(min=torch.finfo(torch.float32).tiny)


def _ideal(
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


def _outer(
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
        inner = _inner(weights, weigh, scale, offset, tried, type_)
        error = inner.error.sum(-1)
        better = torch.ones_like(error, dtype=torch.bool) if least is None else error < least
        least = error if least is None else torch.where(better, error, least)
        best = torch.where(better[:, None], tried, best)
        tried = _refit(weights, weigh, inner, tried, type_)
    return best


def _inner(
    weights: torch.Tensor,
    weigh: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    outer: torch.Tensor,
    type_: BlockType,
) -> _Inner:
    """The groups' whole numbers near their ideal ones, with codes chosen anew for each tried."""
    d, dmin = outer[:, :1], outer[:, 1:]
    if type_.scales is None:
        one = torch.ones_like(scale)
        own = dmin if type_.minimum else d * type_.middle
        codes = _codes(weights, d.expand_as(scale), own.expand_as(scale), type_.top)
        return _Inner(one, one, codes, torch.zeros_like(scale))
    lowest, highest = type_.scales
    near = (scale / d).round_()
    total = weigh.sum(-1)
    sum_weights = (weights * weigh).sum(-1)
    best: _Inner | None = None
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
        new = _Inner(whole, minimum, codes, error)
        best = new if best is None else _better(best, new)
    assert best is not None
    return best


def _better(one: _Inner, other: _Inner) -> _Inner:
    better = other.error < one.error
    return _Inner(
        torch.where(better, other.scale, one.scale),
        torch.where(better, other.minimum, one.minimum),
        torch.where(better[..., None], other.levels, one.levels),
        torch.where(better, other.error, one.error),
    )


def _refit(
    weights: torch.Tensor,
    weigh: torch.Tensor,
    inner: _Inner,
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
