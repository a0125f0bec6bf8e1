"""What a number format is: what a weight's codes mean, and what serving does beside.

Each is a short class beside this file and one YAML in ``conf/format``. Those that compressed-tensors
has a preset scheme for are defined as that is. Nothing heavy is imported before a scheme is asked for.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from qsweep.base.errors import ConfigError
from qsweep.base.schema import nearest
from qsweep.formats.numbers.searches import Search

if TYPE_CHECKING:
    import torch

    from qsweep.formats.numbers.scheme import Scheme

# What quantizers write; ``auto`` is the one that suits best.
CONTAINERS = ("auto", "gptq", "awq", "compressed-tensors", "bitsandbytes", "gguf")
# Generations of GPUs that multiply a format as it is, each with all that come later.
Generation = Literal["turing", "ampere", "ada", "hopper", "blackwell"]


@dataclass(frozen=True)
class NumberFormat(ABC):
    """What codes mean, in which container they lie, and what happens to activations.

    Attributes:
        container: The container to write; ``auto`` is the first of ``containers``.

    Class attributes:
        name: As in ``format=``.
        bits: Of one code; None where the quantizer's option says.
        group_size: Inputs that share a scale, -1 for all; None where the quantizer's option says.
        rows: Outputs that share a scale, -1 for all.
        preset: compressed-tensors' name for it; None where it has none.
        activations: What inputs of quantized layers are served as, in few words; None for as they are.
        static: Whether they have scales that are calibrated.
        containers: What holds it; None where the quantizer's own does.
        runtimes: Who serves it.
        native_since: The first generation of GPUs that multiplies it as it is; None where none does:
            weights are unpacked to 16 bits first, which any can.
        native_until: The last one that servers have kernels for; None where all later ones do.
        unpacks: Whether servers unpack its weights to 16 bits where a GPU does not multiply it.
        on_cpu: Whether servers run it on a CPU.
        gguf: The GGUF type of its kind; None where there is none.
    """

    container: str = "auto"

    name: ClassVar[str]
    bits: ClassVar[int | None] = None
    group_size: ClassVar[int | None] = None
    rows: ClassVar[int] = 1
    preset: ClassVar[str | None] = None
    activations: ClassVar[str | None] = None
    static: ClassVar[bool] = False
    containers: ClassVar[tuple[str, ...] | None] = ("compressed-tensors",)
    runtimes: ClassVar[tuple[str, ...]] = ("vllm", "transformers")
    native_since: ClassVar[Generation | None] = None
    native_until: ClassVar[Generation | None] = None
    unpacks: ClassVar[bool] = True
    on_cpu: ClassVar[bool] = False
    gguf: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if self.container not in CONTAINERS:
            raise ConfigError(
                f"container={self.container}: no such container{nearest(self.container, CONTAINERS)}"
            )

    def scheme(
        self,
        bits: int,
        group_size: int,
        sym: bool,
        *,
        dtype: "torch.dtype",
        search: Search = "range",
    ) -> "Scheme":
        """How weights become codes.

        Args:
            bits: Of one code, where the format leaves it open.
            group_size: Inputs per scale, or -1, where the format leaves it open.
            sym: Whether zero stands in the middle, where the format leaves it open.
            dtype: What the container stores scales as, where they are plain numbers.
            search: How scales are chosen.
        """
        if self.bits is not None:
            bits, sym = self.bits, True
        group_size = group_size if self.group_size is None else self.group_size
        return self._scheme(bits, group_size, sym, dtype, search)

    @abstractmethod
    def _scheme(
        self, bits: int, group_size: int, sym: bool, dtype: "torch.dtype", search: Search
    ) -> "Scheme":
        """The same, with what the format fixes in place."""

    @property
    def smoothing(self) -> float | None:
        """The share of an input's range that moves from activations into weights; None: none does."""
        return None

    @property
    def needs_ranges(self) -> bool:
        """Whether how far inputs reach must be known, so that calibration text is needed."""
        return self.static or self.smoothing is not None

    def served_by(self, bits: int) -> tuple[str, ...]:
        """Who serves it, by name, with codes of so many bits where the format leaves them open."""
        return self.runtimes

    @property
    def fixed(self) -> dict[str, Any]:
        """The quantizer's options that have no effect, with what the format sets them to."""
        if self.bits is None:
            return {}
        return {"bits": self.bits, "group_size": self.group_size, "sym": True}

    def searched(self, search: Search) -> Search:
        """How scales are chosen where a quantizer that could search them is asked for ``search``."""
        return search

    def options(self) -> dict[str, Any]:
        """What of it determines an artifact, but for the container; nothing for the default."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "container"}
        named = {} if self.name == "int" else {"format": self.name}
        return named | {name: value for name, value in own.items() if value not in (None, False)}

    def fits(self, shape: tuple[int, int], group_size: int) -> bool:
        """Whether a linear layer of (outputs, inputs) can be quantized, in groups of that size."""
        return group_size == -1 or shape[1] % group_size == 0

    def held_in(self, usual: str) -> str:
        """The name of the container to write; ``usual`` is the quantizer's own for integers."""
        if self.container != "auto":
            return self.container
        return usual if self.containers is None else self.containers[0]
