"""What a rule makes of options that quantizers of checkpoints in groups share.

Nothing heavy is imported.
"""

from dataclasses import replace
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.formats.numbers import FORMATS, W4A16, W8A16, Int, NumberFormat
from qsweep.quantizers.checks import Grouped
from qsweep.quantizers.rules import Rule


def changed_by(rule: Rule, options: Grouped, asked: int) -> dict[str, Any]:
    """What a rule makes of options.

    Args:
        rule: The rule.
        options: Those of all layers.
        asked: The group size that was asked for, before a format fixed it.

    Returns:
        Those that differ for the layers that it names, by name.

    Raises:
        ConfigError: The format leaves open nothing of what the rule says.
    """
    number, changed, fixed = rule.format, dict[str, Any](rule.options), options.format.fixed
    if options.holder == "gguf" and "group_size" in changed:
        raise ConfigError(
            f"quant.rules: {rule.pattern}.group_size: each of gguf's formats fixes it; take it out"
        )
    if number is None and options.holder == "gguf":
        number = _of_blocks(changed.pop("bits", 0), rule)
    elif number is None and fixed:
        # Integers in so many bits beside a format that has no bits to choose.
        if type(options.format) in (W4A16, W8A16):
            changed = {"bits": options.bits, "group_size": options.group_size, **changed}
        elif "bits" not in changed:
            raise ConfigError(
                f"quant.rules: {rule.pattern}: format={options.format.name} fixes the group size; "
                "name another format or bits"
            )
        number = Int()
    if number is not None:
        if not number.fixed and fixed:
            changed = {"group_size": asked, **changed}
        held = number.containers is None or options.holder in number.containers
        changed["format"] = replace(number, container=options.holder) if held else number
    return changed


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
