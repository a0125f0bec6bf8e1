"""Number formats of floating point: FP8, NVFP4, MXFP4 and MXFP8."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qsweep.formats.numbers.number_format import Generation, NumberFormat
from qsweep.formats.numbers.searches import Search

if TYPE_CHECKING:
    import torch

    from qsweep.formats.numbers.scheme import Scheme


@dataclass(frozen=True)
class FP8(NumberFormat):
    """e4m3 with one scale per layer, beside activations in e4m3 with one calibrated scale per layer."""

    name: ClassVar[str] = "fp8"
    preset: ClassVar[str | None] = "FP8"
    bits: ClassVar[int | None] = 8
    group_size: ClassVar[int | None] = -1
    activations: ClassVar[str | None] = "fp8 per tensor, static"
    static: ClassVar[bool] = True
    native_since: ClassVar[Generation | None] = "ada"
    rows: ClassVar[int] = -1

    def _scheme(
        self, bits: int, group_size: int, sym: bool, dtype: "torch.dtype", search: Search
    ) -> "Scheme":
        from qsweep.formats.numbers.grids import E4M3
        from qsweep.formats.numbers.scales import FloatScale
        from qsweep.formats.numbers.scheme import Scheme

        return Scheme(E4M3, group_size, FloatScale(dtype), rows=self.rows, search=search)


@dataclass(frozen=True)
class FP8Dynamic(FP8):
    """e4m3 with one scale per output, beside activations in e4m3 with a scale per token."""

    name: ClassVar[str] = "fp8_dynamic"
    preset: ClassVar[str | None] = "FP8_DYNAMIC"
    activations: ClassVar[str | None] = "fp8 per token, dynamic"
    static: ClassVar[bool] = False

    rows: ClassVar[int] = 1


@dataclass(frozen=True)
class FP8Block(FP8):
    """e4m3 in blocks of 128 x 128, beside activations with a scale per token and 128 channels.

    As DeepSeek-V3 was trained (arXiv:2412.19437, section 3.3.2).
    """

    name: ClassVar[str] = "fp8_block"
    preset: ClassVar[str | None] = "FP8_BLOCK"
    group_size: ClassVar[int | None] = 128
    activations: ClassVar[str | None] = "fp8 g128, dynamic"
    static: ClassVar[bool] = False

    rows: ClassVar[int] = 128

    def fits(self, shape: tuple[int, int], group_size: int) -> bool:
        """See :meth:`NumberFormat.fits`: blocks at the edges may be smaller."""
        return True


@dataclass(frozen=True)
class NVFP4A16(NumberFormat):
    """e2m1 in groups of 16 with scales in e4m3 under a global one; activations in 16 bits."""

    name: ClassVar[str] = "nvfp4a16"
    preset: ClassVar[str | None] = "NVFP4A16"
    bits: ClassVar[int | None] = 4
    group_size: ClassVar[int | None] = 16
    gguf: ClassVar[str | None] = "NVFP4"

    def _scheme(
        self, bits: int, group_size: int, sym: bool, dtype: "torch.dtype", search: Search
    ) -> "Scheme":
        from qsweep.formats.numbers.grids import E2M1
        from qsweep.formats.numbers.scales import E4M3_SCALE
        from qsweep.formats.numbers.scheme import Scheme

        return Scheme(E2M1, group_size, E4M3_SCALE, search=search)


@dataclass(frozen=True)
class NVFP4(NVFP4A16):
    """e2m1 as nvfp4a16, beside activations of the same kind, whose global scale is calibrated."""

    name: ClassVar[str] = "nvfp4"
    preset: ClassVar[str | None] = "NVFP4"
    activations: ClassVar[str | None] = "nvfp4, dynamic under a static global scale"
    static: ClassVar[bool] = True
    native_since: ClassVar[Generation | None] = "blackwell"


@dataclass(frozen=True)
class MXFP4A16(NumberFormat):
    """e2m1 in groups of 32 with powers of two as scales; activations in 16 bits."""

    name: ClassVar[str] = "mxfp4a16"
    preset: ClassVar[str | None] = "MXFP4A16"
    bits: ClassVar[int | None] = 4
    group_size: ClassVar[int | None] = 32
    gguf: ClassVar[str | None] = "MXFP4"

    def _scheme(
        self, bits: int, group_size: int, sym: bool, dtype: "torch.dtype", search: Search
    ) -> "Scheme":
        from qsweep.formats.numbers.grids import E2M1, E4M3
        from qsweep.formats.numbers.scales import E8M0_SCALE
        from qsweep.formats.numbers.scheme import Scheme

        return Scheme(E2M1 if bits == 4 else E4M3, group_size, E8M0_SCALE, search=search)


@dataclass(frozen=True)
class MXFP4(MXFP4A16):
    """e2m1 as mxfp4a16, beside activations of the same kind."""

    name: ClassVar[str] = "mxfp4"
    preset: ClassVar[str | None] = "MXFP4"
    activations: ClassVar[str | None] = "mxfp4, dynamic"
    native_since: ClassVar[Generation | None] = "blackwell"


@dataclass(frozen=True)
class MXFP8(MXFP4):
    """e4m3 in groups of 32 with powers of two as scales, beside activations of the same kind."""

    name: ClassVar[str] = "mxfp8"
    preset: ClassVar[str | None] = "MXFP8"
    bits: ClassVar[int | None] = 8
    activations: ClassVar[str | None] = "mxfp8, dynamic"
    unpacks: ClassVar[bool] = False
    gguf: ClassVar[str | None] = None
