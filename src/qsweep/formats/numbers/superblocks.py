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
from dataclasses import dataclass, field, replace

import torch

from qsweep.formats.numbers.block_scales import find_inner, find_outer, ideal, weights_of
from qsweep.formats.numbers.block_types import BLOCK_TYPES, FALLBACKS, BlockType
from qsweep.formats.numbers.grids import Grid
from qsweep.formats.numbers.scheme import LayerScheme, Scheme
from qsweep.formats.packing import QuantizedMatrix


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

    type: BlockType = field(kw_only=True)
    outer: torch.Tensor = field(kw_only=True)

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

    type: BlockType = field(kw_only=True)

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
        weigh = weights_of(weights, importance)
        scale, offset = ideal(weights, weigh, self.type)
        return replace(self, whole=find_outer(weights, weigh, scale, offset, self.type)[:, None])

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
        weigh = weights_of(weights, importance)
        inner = find_inner(weights, weigh, *ideal(weights, weigh, self.type), outer, self.type)
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
