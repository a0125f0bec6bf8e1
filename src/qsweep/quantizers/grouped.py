"""The options that quantizers of GPTQ and AWQ checkpoints share.

Nothing heavy is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.base.version import __version__
from qsweep.formats.awq import CONTAINER as AWQ_CONTAINER
from qsweep.formats.gptq import CONTAINER as GPTQ_CONTAINER
from qsweep.formats.numbers import FORMATS, NF4, W4A16, W8A16, Int, NumberFormat, Search
from qsweep.formats.packed import PackedContainer
from qsweep.models.facts import read_tensors
from qsweep.models.roles import EXPERT
from qsweep.models.source import ModelFacts
from qsweep.quantizers.alike import OF_ONE_KIND
from qsweep.quantizers.checks import check_held, check_packing
from qsweep.quantizers.rules import (
    Rule,
    check_rules,
    check_stacks,
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
            made = {rule: None if rule.keep else self._under(rule, asked) for rule in self.rules}
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
        check_rules(self.rules, model.all_linears, model.name)
        if self.holder == "gguf":
            check_stacks({n: self.of_layer(n, shape) for n, shape in model.all_linears.items()})
        alike: dict[Rule | None, dict[str, tuple[int, int]]] = {}
        for name, shape in model.all_linears.items():
            rule = rule_of(self.rules, name)
            if reason_to_keep(rule, name) is None:
                alike.setdefault(rule, {})[name] = shape
        if not alike:
            raise IncompatibleTrial(
                f"quant.rules keep every linear layer of {model.name} in 16 bits, so that nothing is "
                "left to quantize"
            )
        for rule, linears in alike.items():
            own = self.plain if rule is None else self.by_rule[rule]
            assert own is not None
            try:
                own.check_layers(replace(model, linears=linears))
            except IncompatibleTrial as error:
                if rule is None:
                    raise
                raise type(error)(f"quant.rules: {rule.pattern}: {error}") from error

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

    @property
    def _others(self) -> str:
        # Who makes the rest, as somebody would choose it.
        if self.method in ("gptq", "awq", "rtn"):
            return "quant.backend=native does"
        return "quant=gptq, awq and rtn do"

    @property
    def _mixed(self) -> str:
        # What holds layers of several kinds, as somebody would choose it.
        if self.any_format:
            return "format.container=compressed-tensors holds others"
        return "quant.backend=native with format.container=compressed-tensors holds others"

    @property
    def _holders(self) -> tuple[str, ...]:
        return self.format.containers or (self.container.name, "compressed-tensors")

    def _under(self, rule: Rule, asked: int) -> Self:
        """What a rule makes of these options.

        Args:
            rule: The rule.
            asked: The group size that was asked for, before a format fixed it.

        Raises:
            ConfigError: The format leaves open nothing of what the rule says.
        """
        number, changed, fixed = rule.format, dict[str, Any](rule.options), self.format.fixed
        if self.holder == "gguf" and "group_size" in changed:
            raise ConfigError(
                f"quant.rules: {rule.pattern}.group_size: each of gguf's formats fixes it; take it out"
            )
        if number is None and self.holder == "gguf":
            number = _of_blocks(changed.pop("bits", 0), rule)
        elif number is None and fixed:
            # Integers in so many bits beside a format that has no bits to choose.
            if type(self.format) in (W4A16, W8A16):
                changed = {"bits": self.bits, "group_size": self.group_size, **changed}
            elif "bits" not in changed:
                raise ConfigError(
                    f"quant.rules: {rule.pattern}: format={self.format.name} fixes the group size; "
                    "name another format or bits"
                )
            number = Int()
        if number is not None:
            if not number.fixed and fixed:
                changed = {"group_size": asked, **changed}
            held = number.containers is None or self.holder in number.containers
            changed["format"] = replace(number, container=self.holder) if held else number
        return replace(self, rules=(), **changed)

    def check_format(self) -> None:
        """Refuse a number format that this quantizer does not make, and rules that it cannot follow.

        Raises:
            IncompatibleTrial: With the reason.
        """
        self._check_number_format()
        for rule, own in self.by_rule.items():
            self._check_rule(rule, own)

    def _check_rule(self, rule: Rule, own: Self | None) -> None:
        place = f"quant.rules: {rule.pattern}"
        if not self.takes_rules:
            raise IncompatibleTrial(
                f"{getattr(self, 'label', self.backend)} treats all layers alike; {self._others} not "
                "(quant.rules)"
            )
        if own is None:
            return
        if self.holder in OF_ONE_KIND and own != self.plain:
            raise IncompatibleTrial(
                f"{place}: layers of one {self.holder} checkpoint all have the same bits and group "
                "size; keep is the only rule that it holds"
                + (f"; {self._mixed}" if "compressed-tensors" in self._holders else "")
            )
        if self.holder == "gguf" and own.format.containers != ("gguf",):
            named = ", ".join(n for n, number in FORMATS.items() if number.containers == ("gguf",))
            raise IncompatibleTrial(
                f"{place}: a gguf file does not hold format={own.format.name}; name one of {named}"
            )
        try:
            own.check_format()
        except IncompatibleTrial as error:
            raise type(error)(f"{place}: {error}") from error
        if own.holder != self.holder:
            where = f"{rule.value} lies in {own.holder}, and the other layers in {self.holder}"
            if own.holder in self._holders:
                raise IncompatibleTrial(
                    f"{place}: {where}; a checkpoint is one of them (format.container={own.holder})"
                )
            raise IncompatibleTrial(
                f"{place}: {where}; a checkpoint is one of them (format={own.format.name} for all layers)"
            )

    def _check_number_format(self) -> None:
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


def _of_blocks(bits: int, rule: Rule) -> NumberFormat:
    """llama.cpp's usual format with so many bits. Raises ConfigError where there is none."""
    found = {
        number.bits: number
        for number in reversed(FORMATS.values())
        if number.containers == ("gguf",)
    }
    if bits not in found:
        there = ", ".join(map(str, sorted(b for b in found if b is not None)))
        raise ConfigError(
            f"quant.rules: {rule.pattern}: gguf has formats of {there} bits; name one of them, or a "
            "format as q6_k"
        )
    return found[bits]()


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
