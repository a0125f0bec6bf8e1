"""Which candidates can be mixed in one artifact, and what a rule says to give a layer one's own. Pure."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.formats.encoder import name_as_one
from qsweep.formats.numbers import W4A16, W8A16, Int
from qsweep.formats.stored_bits import Stored
from qsweep.models.source import ModelFacts
from qsweep.quantizers.alike import OF_ONE_KIND, stack_of
from qsweep.quantizers.gguf import GGUF
from qsweep.quantizers.grouped import GroupedOptions
from qsweep.quantizers.protocol import Quantizer
from qsweep.quantizers.rules import KEEP, Rule, rule_of

# Formats that are integers of so many bits and groups, and nothing else.
_PLAIN = (Int, W4A16, W8A16)


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
    if quant.format.smoothing is not None:
        raise ConfigError(
            f"budget: {name}: smoothing moves scales from layer to layer, so that nobody can tell what "
            "each one costs; leave format.smoothquant out"
        )
    same = replace(quant, bits=4, group_size=128, format=Int(), sym=quant.symmetric)
    return quant.holder, quant.format.activations, same


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
    values = {name: _value(own) for name, own in quant.quantized(facts).items()}
    # What it cannot hold by its shape, another candidate may.
    values |= {name: KEEP for name, reason in quant.kept(facts).items() if reason == "shape"}
    return {name: value for name, value in values.items() if rule_of(quant.rules, name) is None}


def rules_of(
    groups: Sequence[tuple[str, ...]],
    chosen: Sequence[Mapping[str, str]],
    base: Mapping[str, str],
    layers: Collection[str],
) -> list[str]:
    """The rules that give each group of layers what was chosen for it.

    Args:
        groups: Of layers.
        chosen: For each group, what a rule says by layer.
        base: What layers get without a rule.
        layers: All layers of the model, for patterns that are to name no others.
    """
    found: dict[str, str] = {}
    for group, values in zip(groups, chosen, strict=True):
        differ = [name for name in group if values.get(name) != base.get(name)]
        if differ:
            # A group is stored alike.
            found |= dict.fromkeys(patterns_of(group, layers), values[group[0]])
    return [f"{pattern}={value}" for pattern, value in found.items()]


def patterns_of(group: Sequence[str], layers: Collection[str]) -> list[str]:
    """Patterns that name the layers of a group and no other, and what vLLM makes one of.

    vLLM looks a rule of GPTQ up by the name of the fused layer.

    >>> patterns_of(["0.attn.q_proj", "0.attn.k_proj", "0.attn.v_proj"], [])
    ['0.attn.[kqv]*_proj']
    >>> patterns_of(["0.mlp.experts.0.w1", "0.mlp.experts.1.w1"], [])
    ['0.mlp.experts.*.w1']
    """
    wanted = set(group)
    wholes = {name_as_one(name) for name in group}
    whole = next(iter(wholes)) if len(wholes) == 1 and len(group) > 1 else None
    if whole is not None:
        parent = group[0].rpartition(".")[0]
        lasts = [name.rpartition(".")[2] for name in group]
        letters = "".join(sorted({one[0] for one in (*lasts, whole.rpartition(".")[2])}))
        tail = os.path.commonprefix([one[::-1] for one in (*lasts, whole)])[::-1]
        one = f"{parent}.[{letters}]*{tail}"
        if whole.endswith(".experts"):
            one = f"{whole}.*"
        rule = Rule(one)
        named = {name for name in layers if rule.matches(name)}
        if named <= wanted and all(map(rule.matches, (*group, whole))):
            return [one]
    return list(dict.fromkeys(map(stack_of, group)))


def _value(own: GroupedOptions) -> str:
    if own.holder == "gguf" or type(own.format) not in _PLAIN:
        return own.format.name
    return f"bits:{own.bits},group_size:{own.group_size}"
