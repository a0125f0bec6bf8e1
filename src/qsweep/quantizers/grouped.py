"""The options that quantizers of GPTQ and AWQ checkpoints share, and what such files cannot hold.

Nothing heavy is imported.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.base.version import __version__
from qsweep.formats.awq import CONTAINER as AWQ_CONTAINER
from qsweep.formats.gptq import CONTAINER as GPTQ_CONTAINER
from qsweep.formats.numbers import NF4, W4A16, W8A16, Int, NumberFormat, Search
from qsweep.formats.packed import PackedContainer
from qsweep.formats.packing import BITS
from qsweep.models.facts import CONV1D_TYPES, has_experts, read_config, read_tensors
from qsweep.models.source import ModelFacts

if TYPE_CHECKING:
    import torch

    from qsweep.formats.encoder import Encoder
    from qsweep.formats.numbers.scheme import Scheme

Sym = bool | Literal["auto"] | None


@dataclass(frozen=True)
class GroupedOptions:
    """Bits per code, weights per scale, and whether zero stands in the middle of the grid.

    Attributes:
        bits: As many as a checkpoint can hold: 2, 3, 4 or 8.
        group_size: Weights per scale; -1 for one scale per output.
        sym: Fix the zero point in the middle; ``auto`` (or None) does where ``sym_by_default``.
        format: What codes mean. One that fixes the bits, the group size and the zero point sets them.

    Class attributes:
        any_format: Whether others than integers in ``container`` can be made.
        takes_experts: Whether the experts of a mixture are quantized.
    """

    bits: int = 4
    group_size: int = 128
    sym: Sym = None
    format: NumberFormat = field(default_factory=Int)

    method: ClassVar[str]
    backend: ClassVar[str]
    uses_calibration: ClassVar[bool] = True
    container: ClassVar[PackedContainer]
    sym_by_default: ClassVar[bool] = False
    any_format: ClassVar[bool] = False
    takes_experts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, value in self.format.fixed.items():
            object.__setattr__(self, name, value)  # frozen
        # The same by another name.
        plain = self.format.name == "int" and self.holder == "compressed-tensors"
        if plain and self.symmetric and self.group_size == W4A16.group_size:
            named = {4: W4A16(), 8: W8A16()}.get(self.bits, self.format)
            object.__setattr__(self, "format", named)
        if self.bits < 1:
            raise ConfigError(f"bits={self.bits}: must be at least 1")
        if self.group_size != -1 and self.group_size < 1:
            raise ConfigError(
                f"group_size={self.group_size}: must be -1 (one group per row) or positive"
            )
        if self.sym not in (True, False, "auto", None):
            raise ConfigError(f"sym={self.sym}: must be true, false or auto")

    @property
    def symmetric(self) -> bool:
        """``sym`` with auto (or None) replaced."""
        return self.sym if isinstance(self.sym, bool) else self.sym_by_default

    @property
    def holder(self) -> str:
        """The name of the container that is written."""
        return self.format.held_in(self.container.name)

    @property
    def quantizes_activations(self) -> bool:
        """Whether serving rounds the inputs of quantized layers, too."""
        return self.format.activations is not None

    @property
    def runtimes(self) -> tuple[str, ...]:
        """What can serve the checkpoint, by name."""
        if self.holder != self.container.name:
            return self.format.served_by(self.bits)
        return self.container.runtimes(self.bits, self.group_size, self.symmetric)

    @property
    def written_by(self) -> str:
        """The version of what else writes the container, behind a ``+``; empty where nothing does."""
        if self.holder != "gguf":
            return ""
        from qsweep.quantizers.conversion.artifact import llama_cpp_version

        return f"+llama-cpp-python {llama_cpp_version()}"

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether a linear layer of (outputs, inputs) can be quantized; else it stays as it is."""
        if self.holder == self.container.name:
            return self.container.fits(self.group_size, shape)
        return self.format.fits(shape, self.group_size)

    def kept_layers(self, linears: Mapping[str, tuple[int, int]]) -> list[str]:
        """Names of the linear layers that cannot."""
        return [name for name, shape in linears.items() if not self.fits(shape)]

    def options(self) -> dict[str, Any]:
        """The effective options."""
        usual = replace(self.format, container="auto").held_in(self.container.name)
        held = {} if self.holder == usual else {"container": self.holder}
        grid = {"bits": self.bits, "group_size": self.group_size, "sym": self.symmetric}
        return {**self.format.options(), **held, **grid}

    def packed_settings(self) -> dict[str, Any]:
        """The ``quantization_config`` of a checkpoint in ``container``."""
        raise NotImplementedError

    def encoder(self, model: ModelFacts) -> "Encoder":
        """How layers of a model are written, in whatever has a ``quantization_config``."""
        from qsweep.formats.encoder import PackedEncoder
        from qsweep.formats.hf import usual_dtype

        self.check_format()
        if self.holder == self.container.name:
            return PackedEncoder(self.container, self.packed_settings(), self.symmetric)
        dtype = usual_dtype(read_tensors(model.path).values())
        if isinstance(self.format, NF4):
            from qsweep.formats.bitsandbytes_encoder import BitsAndBytesEncoder

            double = self.format.double_quant
            return BitsAndBytesEncoder(self.format.kind, double, dtype, self.runtimes)
        from qsweep.formats.compressed_encoder import CompressedEncoder

        encoder = CompressedEncoder(
            preset=self.format.preset,
            bits=self.bits,
            group_size=self.group_size,
            sym=self.symmetric,
            dtype=dtype,
            runtimes=self.runtimes,
        )
        shapes = [shape for shape in model.linears.values() if self.fits(shape)]
        serving = tuple(name for name in encoder.runtimes if encoder.read_by(name, shapes))
        own = (
            None
            if self.format.preset or self.format.name == "int"
            else self.scheme(encoder.scale_dtype)
        )
        return replace(encoder, runtimes=serving, own=own)

    def scheme(self, dtype: "torch.dtype", search: Search = "range") -> "Scheme":
        """How weights become codes, with scales stored as ``dtype`` where they are plain numbers."""
        return self.format.scheme(
            self.bits, self.group_size, self.symmetric, dtype=dtype, search=search
        )

    def check(self, model: ModelFacts) -> None:
        """Refuse what the checkpoint cannot hold. Raises IncompatibleTrial."""
        self.check_format()
        if self.holder == self.container.name:
            check_packing(
                self.method,
                self.container,
                self.bits,
                self.group_size,
                model,
                experts=self.takes_experts,
            )
        else:
            check_held(self, model)

    @property
    def _others(self) -> str:
        # Who makes the rest, as somebody would choose it.
        if self.method in ("gptq", "awq", "rtn"):
            return "quant.backend=native does"
        return "quant=gptq, awq and rtn do"

    @property
    def _holders(self) -> tuple[str, ...]:
        return self.format.containers or (self.container.name, "compressed-tensors")

    def check_format(self) -> None:
        """Refuse a number format that this quantizer does not make. Raises IncompatibleTrial."""
        name, holder = self.format.name, self.holder
        if not self.any_format and (name, holder) != ("int", self.container.name):
            what = name if name != "int" else f"container={holder}"
            raise IncompatibleTrial(
                f"{getattr(self, 'label', self.backend)} writes integers as {self.container.name} "
                f"checkpoints, not {what}"
                + (f"; {self._others}" if holder in self._holders else "")
            )
        if holder not in (holders := self._holders):
            raise IncompatibleTrial(
                f"{self.method}: {holder} does not hold format={name}; container="
                f"{' or '.join(holders)} does"
            )
        if holder == "gguf" and self.method == "awq":
            raise IncompatibleTrial(f"awq writes no GGUF; gptq and rtn make format={name}")


@dataclass(frozen=True)
class GPTQOptions(GroupedOptions):
    """GPTQ's options (Frantar et al. 2022, https://arxiv.org/abs/2210.17323), as GPTQModel names them.

    Attributes:
        desc_act: Round the columns with the most active inputs first, across groups.
        act_group_aware: The same within groups, and group by group, which needs no permutation at
            run time; off where ``desc_act`` is on. The native backend orders the columns of formats
            other than GPTQ's across groups, too, under scales that it finds before, where that is
            better.
        damp_percent: Share of the mean diagonal that is added to the Gram matrix.
    """

    desc_act: bool = False
    act_group_aware: bool = True
    damp_percent: float = 0.05

    method: ClassVar[str] = "gptq"
    container: ClassVar[PackedContainer] = GPTQ_CONTAINER
    sym_by_default: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damp_percent < 1:
            raise ConfigError(f"quant.damp_percent={self.damp_percent}: must be between 0 and 1")

    def options(self) -> dict[str, Any]:
        """The effective options."""
        options = super().options()
        sym = options.pop("sym")
        return options | {
            "desc_act": self.desc_act,
            "act_group_aware": self.act_group_aware and not self.desc_act,
            "sym": sym,
            "damp_percent": self.damp_percent,
        }


@dataclass(frozen=True)
class AWQOptions(GroupedOptions):
    """AWQ's options (Lin et al. 2023, https://arxiv.org/abs/2306.00978)."""

    method: ClassVar[str] = "awq"
    container: ClassVar[PackedContainer] = AWQ_CONTAINER


def check_packing(
    method: str,
    container: PackedContainer,
    bits: int,
    group_size: int,
    model: ModelFacts,
    *,
    whole: bool = False,
    multiple: int = 1,
    experts: bool = False,
) -> None:
    """Refuse bits, group sizes and shapes that a checkpoint of that format cannot hold.

    A minority of linear layers that do not fit stay in 16 bits
    (:meth:`~qsweep.formats.packed.PackedContainer.kept_layers`); what most of the weights do not
    fit is refused.

    Args:
        method: What the message calls the quantizer.
        container: How codes are packed.
        bits: Bits per code.
        group_size: Weights per scale, or -1.
        model: The model.
        whole: Whether every layer must fit, because the quantizer cannot be told to leave one out.
        multiple: What the quantizer wants group sizes to be a multiple of.
        experts: Whether the quantizer takes mixtures of experts.

    Raises:
        IncompatibleTrial: With the layer and what would fit it.
    """
    if bits not in BITS:
        more = "; gguf has 5 and 6" if bits in (5, 6) else ""
        raise IncompatibleTrial(f"{method} writes 2, 3, 4 or 8 bits, not {bits}{more}")
    _require_linears(method, model, experts=experts)
    if model.model_type in CONV1D_TYPES and not container.holds_conv1d:
        raise IncompatibleTrial(
            f"{method}: {model.model_type}'s layers are Conv1D, which AWQ does not handle; "
            "gptq and rtn do"
        )
    valid = _best_group_sizes(container, multiple, model)
    kept = container.kept_layers(group_size, model.linears)
    if kept and (whole or 2 * _weights(model, kept) >= _weights(model, model.linears)):
        _refuse(method, container, group_size, model, valid, whole=whole)
    if group_size not in (-1, *container.group_sizes):
        raise IncompatibleTrial(
            f"{method}: no kernel runs group_size={group_size}; for this model: {valid}"
        )


def check_held(quantizer: GroupedOptions, model: ModelFacts) -> None:
    """Refuse what a container other than GPTQ's and AWQ's cannot hold.

    Raises:
        IncompatibleTrial: With the layer and what would fit it.
    """
    method, name = f"{quantizer.method} {quantizer.format.name}", quantizer.holder
    _require_linears(method, model, experts=quantizer.takes_experts)
    if name == "compressed-tensors" and model.model_type in CONV1D_TYPES:
        raise IncompatibleTrial(
            f"{method}: {model.model_type}'s layers are Conv1D, which compressed-tensors does not hold"
        )
    if name == "gguf":
        from qsweep.quantizers.conversion.artifact import require_converter

        require_converter(model)
    if quantizer.format.bits is None and quantizer.bits not in BITS:
        raise IncompatibleTrial(
            f"{method}: {name} is written in 2, 3, 4 or 8 bits, not {quantizer.bits}"
        )
    kept = quantizer.kept_layers(model.linears)
    if 2 * _weights(model, kept) >= _weights(model, model.linears):
        inputs = model.linears[kept[0]][1]
        raise IncompatibleTrial(
            f"{method}: groups of {quantizer.group_size} do not divide the {inputs} inputs of {kept[0]}"
        )


def _require_linears(method: str, model: ModelFacts, *, experts: bool) -> None:
    if not model.linears:
        raise IncompatibleTrial(f"{method}: no linear layers found in {model.name}")
    mixture = has_experts(read_config(model.path)) if model.experts is None else model.experts
    if mixture and not experts:
        raise IncompatibleTrial(
            f"{method}: {model.name} is a mixture of experts, which this quantizer leaves out; "
            "gptq, awq and rtn with quant.backend=native quantize them"
        )
    if model.unread_experts:
        raise IncompatibleTrial(
            f"{method}: {model.name} stores experts as {model.unread_experts[0]}, a layout that "
            "qsweep does not take apart, so most of its weights would stay in 16 bits"
        )


def _weights(model: ModelFacts, names: Iterable[str]) -> int:
    return sum(math.prod(model.linears[name]) for name in names)


def _best_group_sizes(container: PackedContainer, multiple: int, model: ModelFacts) -> str:
    """The group sizes that leave the fewest weights in 16 bits, for a message."""
    sizes = (*(size for size in container.group_sizes if size % multiple == 0), -1)
    left = {size: _weights(model, container.kept_layers(size, model.linears)) for size in sizes}
    return ", ".join(str(size) for size, count in left.items() if count == min(left.values()))


def _refuse(
    method: str,
    container: PackedContainer,
    group_size: int,
    model: ModelFacts,
    valid: str,
    *,
    whole: bool,
) -> None:
    odd = [name for name, shape in model.linears.items() if not container.packs(shape)]
    minority = 2 * _weights(model, odd) < _weights(model, model.linears)
    if odd and (whole or not minority):
        outputs, inputs = model.linears[odd[0]]
        way_out = "; quant=rtn leaves such layers in 16 bits" if minority else ""
        raise IncompatibleTrial(
            f"{method} packs {container.packed_sides} by 32, but {odd[0]} is {outputs} x {inputs}"
            f"{way_out}"
        )
    for layer, shape in model.linears.items():
        if layer not in odd and not container.fits(group_size, shape):
            raise IncompatibleTrial(
                f"{method}: group_size={group_size} does not divide the {shape[1]} inputs of "
                f"{layer}; for this model: {valid}"
            )


def packed_settings(method: str, format: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What GPTQModel writes into every ``quantization_config``; transformers and vLLM read a part."""
    return {
        "quant_method": method,
        "method": method,
        "format": format,
        "checkpoint_format": format,
        "bits": options["bits"],
        "group_size": options["group_size"],
        "lm_head": False,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"qsweep:{__version__}"]},
    }
