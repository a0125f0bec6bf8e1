"""Which candidates can be mixed in one artifact, and what a rule says to give a layer one's own. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.formats.numbers import Int
from qsweep.formats.stored_bits import Stored
from qsweep.models.source import ModelFacts
from qsweep.quantizers.alike import OF_ONE_KIND, stack_of
from qsweep.quantizers.gguf import GGUF
from qsweep.quantizers.grouped import GroupedOptions
from qsweep.quantizers.protocol import Quantizer
from qsweep.quantizers.rules import rule_of


def family_of(quant: Quantizer, name: str) -> Any:
    """What has to be equal of candidates of which an artifact may have layers side by side.

    Args:
        quant: The candidate.
        name: What its trial is called.

    Raises:
        ConfigError: Its artifacts cannot have layers that differ.
    """
    if isinstance(quant, GGUF):
        return replace(quant, bits=4, type=None)
    if not isinstance(quant, GroupedOptions) or not quant.takes_rules:
        raise ConfigError(
            f"budget: {name}: this quantizer treats all layers alike; quant=gptq, rtn and gguf mix"
        )
    if quant.method == "awq":
        raise ConfigError(
            f"budget: {name}: awq moves scales from layer to layer, so that nobody can tell what each "
            "one costs; quant=gptq, rtn and gguf mix"
        )
    if quant.holder in OF_ONE_KIND:
        raise ConfigError(
            f"budget: {name}: a {quant.holder} checkpoint has one width for all layers; "
            "container=gptq or compressed-tensors holds mixes"
        )
    whole = isinstance(quant.format, Int)
    same = replace(
        quant, bits=4, group_size=128, format=Int(), sym=quant.symmetric if whole else None
    )
    return quant.holder, same


def values_of(quant: Quantizer, facts: ModelFacts, stored: Mapping[str, Stored]) -> dict[str, str]:
    """By layer, what a rule says to give it what a candidate gives it.

    Layers that a rule of the candidate's own names are left out: they are settled.

    Args:
        quant: The candidate.
        facts: The model.
        stored: What its layers are stored as.
    """
    if isinstance(quant, GGUF):
        rules = getattr(quant, "rules", ())
        return {
            name: one.type.lower()
            for name, one in stored.items()
            if rule_of(rules, name) is None and "+" not in one.type
        }
    assert isinstance(quant, GroupedOptions)
    return {
        name: _value(own)
        for name, own in quant.quantized(facts).items()
        if rule_of(quant.rules, name) is None
    }


def rules_of(
    groups: tuple[tuple[str, ...], ...], chosen: list[Mapping[str, str]], base: Mapping[str, str]
) -> list[str]:
    """The rules that give each group of layers what was chosen for it.

    Args:
        groups: Of layers.
        chosen: For each group, what a rule says by layer.
        base: What layers get without a rule.
    """
    found: dict[str, str] = {}
    for group, values in zip(groups, chosen, strict=True):
        for name in group:
            if values[name] != base.get(name):
                found[stack_of(name)] = values[name]
    return [f"{pattern}={value}" for pattern, value in found.items()]


def _value(own: GroupedOptions) -> str:
    if own.holder == "gguf" or not isinstance(own.format, Int):
        return own.format.name
    return f"bits:{own.bits},group_size:{own.group_size}"
