"""Number formats of llama.cpp's own: its K-quants, and blocks of 32 weights. Any of them in a GGUF file."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from qsweep.formats.numbers.number_format import NumberFormat, Search

if TYPE_CHECKING:
    import torch

    from qsweep.formats.numbers.scheme import Scheme


@dataclass(frozen=True)
class Q4K(NumberFormat):
    """4 bits in groups of 32, with scales and minima of 6 bits for 256 weights together.

    Rows that 256 does not divide become blocks of 32 weights, as llama.cpp has it.
    """

    name: ClassVar[str] = "q4_k"
    bits: ClassVar[int | None] = 4
    group_size: ClassVar[int | None] = 32
    containers: ClassVar[tuple[str, ...] | None] = ("gguf",)
    runtimes: ClassVar[tuple[str, ...]] = ("llama.cpp", "ollama")
    gguf: ClassVar[str | None] = "Q4_K_S"
    on_cpu: ClassVar[bool] = True
    stored_bits: ClassVar[float] = 4.5

    sym: ClassVar[bool] = False

    @property
    def fixed(self) -> dict[str, Any]:
        """See :attr:`NumberFormat.fixed`."""
        return super().fixed | {"sym": self.sym}

    @property
    def block(self) -> str:
        """The name of the tensor type."""
        return self.name.upper()

    def searched(self, search: Search) -> Search:
        """See :meth:`NumberFormat.searched`: what a group spans tells little of whole scales."""
        return "loss"

    def _scheme(
        self, bits: int, group_size: int, sym: bool, dtype: "torch.dtype", search: Search
    ) -> "Scheme":
        from qsweep.formats.numbers.superblocks import block_scheme

        return block_scheme(self.block)


@dataclass(frozen=True)
class Q2K(Q4K):
    """2 bits in groups of 16, with scales and minima of 4 bits."""

    name: ClassVar[str] = "q2_k"
    bits: ClassVar[int | None] = 2
    group_size: ClassVar[int | None] = 16
    gguf: ClassVar[str | None] = "Q2_K"
    stored_bits: ClassVar[float] = 2.625


@dataclass(frozen=True)
class Q3K(Q4K):
    """3 bits about 0 in groups of 16, with scales of 6 bits."""

    name: ClassVar[str] = "q3_k"
    bits: ClassVar[int | None] = 3
    group_size: ClassVar[int | None] = 16
    gguf: ClassVar[str | None] = "Q3_K_S"
    stored_bits: ClassVar[float] = 3.4375

    sym: ClassVar[bool] = True


@dataclass(frozen=True)
class Q5K(Q4K):
    """5 bits in groups of 32, with scales and minima of 6 bits."""

    name: ClassVar[str] = "q5_k"
    bits: ClassVar[int | None] = 5
    gguf: ClassVar[str | None] = "Q5_K_S"
    stored_bits: ClassVar[float] = 5.5


@dataclass(frozen=True)
class Q6K(Q3K):
    """6 bits about 0 in groups of 16, with scales of 8 bits."""

    name: ClassVar[str] = "q6_k"
    bits: ClassVar[int | None] = 6
    gguf: ClassVar[str | None] = "Q6_K"
    stored_bits: ClassVar[float] = 6.5625


@dataclass(frozen=True)
class Q40(Q4K):
    """4 bits about 0 in groups of 32, with scales in float16."""

    name: ClassVar[str] = "q4_0"
    gguf: ClassVar[str | None] = "Q4_0"
    stored_bits: ClassVar[float] = 4.5

    sym: ClassVar[bool] = True


@dataclass(frozen=True)
class Q80(Q40):
    """8 bits about 0 in groups of 32, with scales in float16."""

    name: ClassVar[str] = "q8_0"
    bits: ClassVar[int | None] = 8
    gguf: ClassVar[str | None] = "Q8_0"
    stored_bits: ClassVar[float] = 8.5
