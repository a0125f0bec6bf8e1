"""The options that quantizers of GPTQ and AWQ checkpoints share.

Nothing heavy is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from qsweep.base.errors import ConfigError
from qsweep.base.version import __version__
from qsweep.formats.awq import CONTAINER as AWQ_CONTAINER
from qsweep.formats.gptq import CONTAINER as GPTQ_CONTAINER
from qsweep.formats.numbers import NF4, W4A16, W8A16, Int, NumberFormat, Search
from qsweep.formats.packed import PackedContainer
from qsweep.models.facts import read_tensors
from qsweep.models.roles import EXPERT
from qsweep.models.source import ModelFacts
from qsweep.quantizers.checks import check_held, check_packing
from qsweep.quantizers.grouped_checks import check_layers_by_rule, check_number_format, check_rule
from qsweep.quantizers.grouped_rules import changed_by
from qsweep.quantizers.rules import (
    Rule,
    read_rules,
    reason_to_keep,
    rule_of,
)
from qsweep.quantizers.serving import closed_to

if TYPE_CHECKING:
    import torch

    from qsweep.formats.encoder import Encoder, LayerEncoders
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
        rules: What of that differs for which layers, and which stay in 16 bits; a mapping as
            :mod:`qsweep.quantizers.rules` has it, which becomes a tuple of its rules.

    Class attributes:
        any_format: Whether others than integers in ``container`` can be made.
        takes_experts: Whether the experts of a mixture are quantized.
        takes_rules: Whether layers can differ.
    """

    bits: int = 4
    group_size: int = 128
    sym: Sym = None
    format: NumberFormat = field(default_factory=Int)
    rules: Any = ()

    method: ClassVar[str]
    backend: ClassVar[str]
    uses_calibration: ClassVar[bool] = True
    container: ClassVar[PackedContainer]
    sym_by_default: ClassVar[bool] = False
    any_format: ClassVar[bool] = False
    takes_experts: ClassVar[bool] = False
    takes_rules: ClassVar[bool] = False

    def __post_init__(self) -> None:
        asked = self.group_size
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
        object.__setattr__(self, "rules", read_rules(self.rules))
        if self.rules:
            made = {
                rule: None
                if rule.keep
                else replace(self, rules=(), **changed_by(rule, self, asked))
                for rule in self.rules
            }
            object.__setattr__(self, "by_rule", made)

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

    @cached_property
    def plain(self) -> Self:
        """These options without rules: those of layers that no rule names."""
        return replace(self, rules=()) if self.rules else self

    @cached_property
    def by_rule(self) -> dict[Rule, Self | None]:
        """The options, without rules, of the layers that each rule names; None: they are kept."""
        return {}  # where there are rules, the constructor has made it

    @property
    def every(self) -> list[Self]:
        """All options that layers may have, without rules."""
        return [self.plain, *(own for own in self.by_rule.values() if own is not None)]

    def of_layer(self, name: str, shape: tuple[int, int]) -> Self | None:
        """The options of a linear layer, without rules; None where it stays in 16 bits.

        Args:
            name: What the checkpoint calls it.
            shape: Its (outputs, inputs).
        """
        rule = rule_of(self.rules, name)
        if reason_to_keep(rule, name) is not None:
            return None
        own = self.plain if rule is None else self.by_rule[rule]
        return own if own is not None and own.fits(shape) else None

    def quantized(self, model: ModelFacts) -> dict[str, Self]:
        """The options of each linear layer that is quantized, by name."""
        found = {name: self.of_layer(name, shape) for name, shape in model.all_linears.items()}
        return {name: own for name, own in found.items() if own is not None}

    def kept(self, model: ModelFacts) -> dict[str, str]:
        """Why each linear layer that stays in 16 bits does, by name."""
        return {
            name: reason_to_keep(rule_of(self.rules, name), name) or "shape"
            for name, shape in model.all_linears.items()
            if self.of_layer(name, shape) is None
        }

    def asked(self, model: ModelFacts) -> list[str]:
        """Those that are quantized only because a rule asks for them."""
        return [n for n, shape in model.kept.items() if self.of_layer(n, shape) is not None]

    def kept_by_rules(self, model: ModelFacts) -> dict[str, str]:
        """Those of them of which a rule says so."""
        return {
            name: reason
            for name, reason in self.kept(model).items()
            if (rule := rule_of(self.rules, name)) is not None and rule.keep
        }

    def options(self) -> dict[str, Any]:
        """The effective options; of rules only where there are any."""
        usual = replace(self.format, container="auto").held_in(self.container.name)
        held = {} if self.holder == usual else {"container": self.holder}
        grid = {"bits": self.bits, "group_size": self.group_size, "sym": self.symmetric}
        rules = {"rules": [str(rule) for rule in self.rules]} if self.rules else {}
        return {**self.format.options(), **held, **grid, **rules}

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

    def encoders(self, model: ModelFacts) -> "LayerEncoders":
        """The same with what rules say of single layers."""
        from qsweep.formats.encoder import LayerEncoders

        usual = self.plain.encoder(model)
        others = tuple(
            (rule.expression, None if own is None else own.encoder(model))
            for rule, own in self.by_rule.items()
        )
        experts = {n: own for n, own in self.quantized(model).items() if EXPERT.search(n)}
        writing = [own.encoder(model) for own in set(experts.values())]
        unreadable = {n for one in writing for n in one.runtimes if not one.loads_experts(n)}
        closed = closed_to(model, experts, self.holder, unreadable)
        if self.holder == "gptq" and self.kept(model):
            closed.add(
                "transformers"
            )  # optimum takes every layer of the decoder for a quantized one
        # Who made a checkpoint loads it.
        closed.discard(self.backend)
        return LayerEncoders(usual, others, tuple(model.all_linears), frozenset(closed))

    def scheme(self, dtype: "torch.dtype", search: Search = "range") -> "Scheme":
        """How weights become codes, with scales stored as ``dtype`` where they are plain numbers."""
        return self.format.scheme(
            self.bits, self.group_size, self.symmetric, dtype=dtype, search=search
        )

    def check(self, model: ModelFacts) -> None:
        """Refuse what the checkpoint cannot hold, and rules that change nothing.

        Raises:
            IncompatibleTrial: With the reason.
        """
        self.check_format()
        if not self.rules:
            self.check_layers(model)
            return
        check_layers_by_rule(self, model)

    def check_layers(self, model: ModelFacts) -> None:
        """Refuse what the checkpoint cannot hold of a model's linear layers. Raises IncompatibleTrial."""
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

    def check_format(self) -> None:
        """Refuse a number format that this quantizer does not make, and rules that it cannot follow.

        Raises:
            IncompatibleTrial: With the reason.
        """
        check_number_format(self)
        for rule, own in self.by_rule.items():
            check_rule(self, rule, own)


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
