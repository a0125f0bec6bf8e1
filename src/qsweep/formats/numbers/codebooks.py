"""Number formats of bitsandbytes: tables of 16 values, scaled by the largest of 64 weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from qsweep.formats.numbers.number_format import NumberFormat
from qsweep.formats.numbers.searches import Search

if TYPE_CHECKING:
    import torch

    from qsweep.formats.numbers.scheme import Scheme

# Quantiles of a normal distribution (QLoRA, Dettmers et al. 2023, arXiv:2305.14314, appendix E).
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
# bitsandbytes' own floating point of 4 bits, in its order of codes, over its largest.
_SIZES = tuple(size / 12 for size in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
_FP4 = (*_SIZES, *(-size for size in _SIZES))


@dataclass(frozen=True)
class NF4(NumberFormat):
    """Quantiles of a normal distribution, with one scale for 64 weights.

    Attributes:
        double_quant: Whether scales are themselves quantized, to 8 bits in blocks of 256; the
            library does it after rounding to nearest.
    """

    double_quant: bool = False

    name: ClassVar[str] = "nf4"
    bits: ClassVar[int | None] = 4
    group_size: ClassVar[int | None] = 64
    containers: ClassVar[tuple[str, ...] | None] = ("bitsandbytes",)
    runtimes: ClassVar[tuple[str, ...]] = ("transformers", "vllm")

    kind: ClassVar[Literal["nf4", "fp4"]] = "nf4"
    _values: ClassVar[tuple[float, ...]] = _NF4

    def _scheme(
        self, bits: int, group_size: int, sym: bool, dtype: "torch.dtype", search: Search
    ) -> "Scheme":
        from qsweep.formats.numbers.grids import Codebook
        from qsweep.formats.numbers.scales import FloatScale
        from qsweep.formats.numbers.scheme import Scheme

        return Scheme(Codebook(self._values), group_size, FloatScale(dtype), search=search)


@dataclass(frozen=True)
class FP4(NF4):
    """Floating point of 4 bits as bitsandbytes has it, with one scale for 64 weights."""

    name: ClassVar[str] = "fp4"

    kind: ClassVar[Literal["nf4", "fp4"]] = "fp4"
    _values: ClassVar[tuple[float, ...]] = _FP4
