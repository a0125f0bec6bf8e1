"""What the ``quantization_config`` of a GPTQ or AWQ checkpoint says, under all names in use.

GPTQModel, AutoGPTQ, transformers and AutoRound say ``bits`` and ``group_size``, AutoAWQ's own files
``w_bit`` and ``q_group_size``; ``sym`` of GPTQ is the opposite of AWQ's ``zero_point``. Single layers
may differ: by GPTQModel's ``dynamic`` (regular expressions, the first that matches counts), or by
AutoRound's ``extra_config``.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.packing import ALL_BITS

_BITS = ("bits", "w_bit", "wbits")
_GROUP_SIZE = ("group_size", "q_group_size")
_OF_EXPRESSIONS = frozenset("*+?^$()[]{}|\\")


@dataclass(frozen=True)
class Stated:
    """What is stated of one layer.

    Attributes:
        bits: Bits per code that it may have, the likeliest first.
        group_sizes: Its inputs per scale, likewise; -1 is all of them.
        sym: Whether zero points lie in the middle.
        desc_act: Whether groups are of inputs in the order of their activations.
    """

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    sym: bool
    desc_act: bool


def stated_of(settings: Mapping[str, Any], layer: str) -> Stated:
    """What a checkpoint states of a layer; ArtifactCorrupt if its bits are no number from 2 to 8.

    Rules for other layers may also name bits that are not packed: 16 of a layer that is left alone.
    """
    override = _override(settings, layer)
    for values, of in ((settings, ""), (override, f" for {layer}")):
        stated = _first(values, _BITS)
        if stated not in ALL_BITS and (values is settings or stated is not None):
            raise ArtifactCorrupt(
                f"its quantization_config says bits: {_shown(values)}{of}; a whole number from 2 "
                "to 8 must stand there"
            )
    own = {**settings, **override}
    everywhere = [override, settings, *(values for *_, values in _overrides(settings))]
    bits = [b for values in everywhere if (b := _first(values, _BITS)) in ALL_BITS]
    sizes = [n for values in everywhere if (n := _first(values, _GROUP_SIZE)) is not None]
    zero_point = own.get("zero_point")
    sym = not zero_point if isinstance(zero_point, bool) else bool(own.get("sym", True))
    if settings.get("quant_method") == "awq" and zero_point is None and "sym" not in own:
        sym = False
    return Stated(
        tuple(dict.fromkeys(b for b in bits if b is not None)),
        tuple(dict.fromkeys(sizes)) or (-1,),
        sym,
        own.get("desc_act") is True,
    )


def layout_of(settings: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """How a checkpoint names its layout, in small letters; "" if it does not.

    Args:
        settings: The ``quantization_config``.
        names: Where it may stand, the best first. GPTQModel says ``format`` and, for its elders,
            ``checkpoint_format``, AutoGPTQ that or ``is_marlin_format``, AutoAWQ ``version``.
    """
    if settings.get("quant_method") == "marlin" or settings.get("is_marlin_format") is True:
        return "marlin"
    named = (settings.get(name) for name in names)
    return next((str(name).lower() for name in named if name), "")


def _override(settings: Mapping[str, Any], layer: str) -> Mapping[str, Any]:
    rules = list(_overrides(settings))
    # GPTQModel takes the first that matches, AutoRound what is said of the layer by name.
    found = [values for group, name, values in rules if (group, name) == ("extra_config", layer)]
    found += [values for group, name, values in rules if _matches(group, name, layer)]
    return found[0] if found else {}


def _overrides(
    settings: Mapping[str, Any],
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Where each rule for single layers stands, whom it is for, and what it says."""
    for group in ("dynamic", "extra_config"):
        rules = settings.get(group)
        for pattern, values in (rules if isinstance(rules, Mapping) else {}).items():
            # A rule with a minus leaves layers out: they have no codes to be read.
            if isinstance(values, Mapping) and not pattern.startswith("-:"):
                yield group, pattern.removeprefix("+:"), values


def _matches(group: str, pattern: str, layer: str) -> bool:
    # AutoRound's are names, but for those with more than a dot of an expression: ``mlp.gate``,
    # which is left alone in a mixture's router, is no rule for ``mlp.gate_proj``.
    if group == "extra_config" and not set(pattern) & _OF_EXPRESSIONS:
        return False
    try:
        return re.match(pattern, layer) is not None
    except re.error:  # written for another library's expressions
        return False


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = values.get(name)
        if isinstance(value, str) and re.fullmatch(r"-?\d{1,6}", value):
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _shown(settings: Mapping[str, Any]) -> str:
    value = next((settings[name] for name in _BITS if name in settings), "nothing")
    return repr(value)[:40] if value != "nothing" else value
