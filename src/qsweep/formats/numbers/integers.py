"""Number formats of whole numbers: uniform grids."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qsweep.base.errors import ConfigError
from qsweep.formats.numbers.number_format import Generation, NumberFormat
from qsweep.formats.numbers.searches import Search

if TYPE_CHECKING:
    import torch

    from qsweep.formats.numbers.scheme import Scheme


@dataclass(frozen=True)
class Int(NumberFormat):
    """``bits``, ``group_size`` and ``sym`` as the options say, in the quantizer's own container.

    >>> Int().options()
    {}
    """

    name: ClassVar[str] = "int"
    containers: ClassVar[tuple[str, ...] | None] = None

    def served_by(self, bits: int) -> tuple[str, ...]:
        """See :meth:`NumberFormat.served_by`; vLLM has kernels of 4 and 8 bits."""
        return self.runtimes if bits in (4, 8) else ("transformers",)

    on_cpu: ClassVar[bool] = True

    def _scheme(
        self, bits: int, group_size: int, sym: bool, dtype: "torch.dtype", search: Search
    ) -> "Scheme":
        from qsweep.formats.numbers.grids import Integers
        from qsweep.formats.numbers.scales import FloatScale
        from qsweep.formats.numbers.scheme import Scheme

        return Scheme(Integers(bits, sym), group_size, FloatScale(dtype), search=search)


@dataclass(frozen=True)
class W4A16(Int):
    """4 bits, 128 inputs to a scale, symmetric; activations in 16 bits.

    >>> W4A16().options()
    {'format': 'w4a16'}
    """

    name: ClassVar[str] = "w4a16"
    preset: ClassVar[str | None] = "W4A16"
    bits: ClassVar[int | None] = 4
    group_size: ClassVar[int | None] = 128
    containers: ClassVar[tuple[str, ...] | None] = ("compressed-tensors",)


@dataclass(frozen=True)
class W8A16(W4A16):
    """8 bits, 128 inputs to a scale, symmetric; activations in 16 bits."""

    name: ClassVar[str] = "w8a16"
    preset: ClassVar[str | None] = "W8A16"
    bits: ClassVar[int | None] = 8
    on_cpu: ClassVar[bool] = False


@dataclass(frozen=True)
class _Smoothable(W4A16):
    """Integers beside activations of 8 bits, which smoothing makes easier to hold.

    Attributes:
        smoothquant: Share of an input's range that moves from activations into weights before both
            are rounded (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438), 0 to 1; null: none does.
    """

    smoothquant: float | None = None

    activations: ClassVar[str | None] = "int8 per token, dynamic"
    unpacks: ClassVar[bool] = False
    on_cpu: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smoothquant is not None and not 0 < self.smoothquant < 1:
            raise ConfigError(
                f"format.smoothquant={self.smoothquant}: must lie between 0 and 1, or be null"
            )

    @property
    def smoothing(self) -> float | None:
        """See :attr:`NumberFormat.smoothing`."""
        return self.smoothquant


@dataclass(frozen=True)
class W8A8(_Smoothable):
    """8 bits, one scale per output, beside activations of 8 bits with a scale per token."""

    name: ClassVar[str] = "w8a8"
    preset: ClassVar[str | None] = "W8A8"
    bits: ClassVar[int | None] = 8
    group_size: ClassVar[int | None] = -1
    native_since: ClassVar[Generation | None] = "turing"
    native_until: ClassVar[Generation | None] = "hopper"


@dataclass(frozen=True)
class W4A8(_Smoothable):
    """4 bits, 128 inputs to a scale, beside activations of 8 bits with a scale per token.

    No GPU's kernel serves it: vLLM's is Arm's for CPUs. compressed-tensors keeps codes in whole bytes
    here, as integers beside quantized activations.
    """

    name: ClassVar[str] = "w4a8"
    preset: ClassVar[str | None] = "W4A8"


@dataclass(frozen=True)
class W4AFP8(W4A16):
    """4 bits, 128 inputs to a scale, beside activations in e4m3 with a scale per token."""

    name: ClassVar[str] = "w4afp8"
    preset: ClassVar[str | None] = "W4AFP8"
    activations: ClassVar[str | None] = "fp8 per token, dynamic"
    runtimes: ClassVar[tuple[str, ...]] = ("vllm",)
    native_since: ClassVar[Generation | None] = "hopper"
    native_until: ClassVar[Generation | None] = "hopper"
    unpacks: ClassVar[bool] = False
    on_cpu: ClassVar[bool] = False


@dataclass(frozen=True)
class Ternary(NumberFormat):
    """-1, 0 and 1, with a scale for 128 inputs: codes of two bits, of which one goes unused.

    Rounding to nearest takes the mean of a group's magnitudes as its scale (BitNet b1.58, Ma et al.
    2024, arXiv:2402.17764); GPTQ searches one, for a mean is far from the best.
    """

    name: ClassVar[str] = "ternary"
    bits: ClassVar[int | None] = 2
    group_size: ClassVar[int | None] = 128
    runtimes: ClassVar[tuple[str, ...]] = ("transformers",)
    gguf: ClassVar[str | None] = "TQ2_0"

    def searched(self, search: Search) -> Search:
        """See :meth:`NumberFormat.searched`."""
        return "mse" if search == "range" else search

    def _scheme(
        self, bits: int, group_size: int, sym: bool, dtype: "torch.dtype", search: Search
    ) -> "Scheme":
        from qsweep.formats.numbers.grids import Integers
        from qsweep.formats.numbers.scales import FloatScale
        from qsweep.formats.numbers.scheme import Scheme

        grid = Integers(2, sym=True, narrow=True)
        return Scheme(grid, group_size, FloatScale(dtype), extreme="mean", search=search)
