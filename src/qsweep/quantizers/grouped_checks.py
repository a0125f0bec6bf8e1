"""What quantizers of checkpoints in groups refuse of number formats and of rules.

Nothing heavy is imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from qsweep.base.errors import IncompatibleTrial
from qsweep.formats.numbers import FORMATS
from qsweep.formats.packed import PackedContainer
from qsweep.models.source import ModelFacts
from qsweep.quantizers.alike import OF_ONE_KIND
from qsweep.quantizers.checks import Grouped
from qsweep.quantizers.rules import Rule, check_rules, check_stacks, reason_to_keep, rule_of


class Checked(Grouped, Protocol):
    """What is looked at of a quantizer's options; a ``GroupedOptions`` says what they are."""

    @property
    def backend(self) -> str:
        """Who quantizes."""

    @property
    def container(self) -> PackedContainer:
        """What is written where the format does not say otherwise."""

    @property
    def any_format(self) -> bool:
        """Whether others than integers in ``container`` can be made."""

    @property
    def takes_rules(self) -> bool:
        """Whether layers can differ."""

    @property
    def rules(self) -> Sequence[Rule]:
        """The rules."""

    @property
    def plain(self) -> "Checked":
        """The options of layers that no rule names."""

    @property
    def by_rule(self) -> Mapping[Rule, "Checked | None"]:
        """Those of the layers that each rule names; None: they are kept."""

    def of_layer(self, name: str, shape: tuple[int, int]) -> object:
        """Those of one layer."""

    def check_format(self) -> None:
        """Refuse a number format, and rules."""

    def check_layers(self, model: ModelFacts) -> None:
        """Refuse what the checkpoint cannot hold."""


def check_rule(options: Checked, rule: Rule, own: Checked | None) -> None:
    """Refuse a rule that a quantizer cannot follow, or that makes of layers what lies elsewhere.

    Args:
        options: Those of all layers.
        rule: The rule.
        own: What it makes of them; None where layers are kept.

    Raises:
        IncompatibleTrial: With the rule, and what to do.
    """
    place = f"quant.rules: {rule.pattern}"
    if not options.takes_rules:
        raise IncompatibleTrial(
            f"{getattr(options, 'label', options.backend)} treats all layers alike; {_others(options)} not "
            "(quant.rules)"
        )
    if own is None:
        return
    if options.holder in OF_ONE_KIND and own != options.plain:
        raise IncompatibleTrial(
            f"{place}: layers of one {options.holder} checkpoint all have the same bits and group "
            "size; keep is the only rule that it holds"
            + (f"; {_mixed(options)}" if "compressed-tensors" in _holders(options) else "")
        )
    if options.holder == "gguf" and own.format.containers != ("gguf",):
        named = ", ".join(n for n, number in FORMATS.items() if number.containers == ("gguf",))
        raise IncompatibleTrial(
            f"{place}: a gguf file does not hold format={own.format.name}; name one of {named}"
        )
    try:
        own.check_format()
    except IncompatibleTrial as error:
        raise type(error)(f"{place}: {error}") from error
    if own.holder != options.holder:
        where = f"{rule.value} lies in {own.holder}, and the other layers in {options.holder}"
        if own.holder in _holders(options):
            raise IncompatibleTrial(
                f"{place}: {where}; a checkpoint is one of them (format.container={own.holder})"
            )
        raise IncompatibleTrial(
            f"{place}: {where}; a checkpoint is one of them (format={own.format.name} for all layers)"
        )


def check_number_format(options: Checked) -> None:
    """Refuse a number format that a quantizer does not make, or that its container does not hold.

    Raises:
        IncompatibleTrial: Says which does.
    """
    name, holder = options.format.name, options.holder
    if not options.any_format and (name, holder) != ("int", options.container.name):
        what = name if name != "int" else f"container={holder}"
        raise IncompatibleTrial(
            f"{getattr(options, 'label', options.backend)} writes integers as {options.container.name} "
            f"checkpoints, not {what}"
            + (f"; {_others(options)}" if holder in _holders(options) else "")
        )
    if holder not in (holders := _holders(options)):
        raise IncompatibleTrial(
            f"{options.method}: {holder} does not hold format={name}; container="
            f"{' or '.join(holders)} does"
        )
    if holder == "gguf" and options.method == "awq":
        raise IncompatibleTrial(f"awq writes no GGUF; gptq and rtn make format={name}")


def check_layers_by_rule(options: Checked, model: ModelFacts) -> None:
    """Refuse rules that change nothing in a model, and layers that cannot be what they say.

    Raises:
        IncompatibleTrial: With the rule.
    """
    check_rules(options.rules, model.all_linears, model.name)
    if options.holder == "gguf":
        check_stacks({n: options.of_layer(n, shape) for n, shape in model.all_linears.items()})
    alike: dict[Rule | None, dict[str, tuple[int, int]]] = {}
    for name, shape in model.all_linears.items():
        rule = rule_of(options.rules, name)
        if reason_to_keep(rule, name) is None:
            alike.setdefault(rule, {})[name] = shape
    if not alike:
        raise IncompatibleTrial(
            f"quant.rules keep every linear layer of {model.name} in 16 bits, so that nothing is "
            "left to quantize"
        )
    for rule, linears in alike.items():
        own = options.plain if rule is None else options.by_rule[rule]
        assert own is not None
        try:
            own.check_layers(replace(model, linears=linears))
        except IncompatibleTrial as error:
            if rule is None:
                raise
            raise type(error)(f"quant.rules: {rule.pattern}: {error}") from error


def _others(options: Checked) -> str:
    # Who makes the rest, as somebody would choose it.
    if options.method in ("gptq", "awq", "rtn"):
        return "quant.backend=native does"
    return "quant=gptq, awq and rtn do"


def _mixed(options: Checked) -> str:
    # What holds layers of several kinds, as somebody would choose it.
    if options.any_format:
        return "format.container=compressed-tensors holds others"
    return "quant.backend=native with format.container=compressed-tensors holds others"


def _holders(options: Checked) -> tuple[str, ...]:
    return options.format.containers or (options.container.name, "compressed-tensors")
