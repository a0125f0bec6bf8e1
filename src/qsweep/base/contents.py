"""Checks of parsed JSON, field by field; whole files are for :mod:`qsweep.base.typed_json`."""

import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]

# Figures that others calculate with or format; what else a maker notes may be any JSON.
_FIGURE = re.compile(
    r"ppl(_stderr|_ratio(_low|_high)?)?|kld(_stderr|_median|_p\d+|_max|_native|_floor_\w+)?|ear"
    r"|top1_agreement(_native)?|quality(_per_gb)?|bpw(_total)?|score|retention|\w+_(s|gb|tps)(_speed)?"
)


def is_number(value: Any) -> bool:
    """An integer or a float; not a truth value, which Python counts among them."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def has_figures(value: Any) -> bool:
    """A mapping in which whatever is named like a figure is a number, or absent (None)."""
    return isinstance(value, dict) and all(
        found is None or is_number(found)
        for name, found in value.items()
        if _FIGURE.fullmatch(name)
    )


def is_text(value: Any) -> bool:
    """A string."""
    return isinstance(value, str)


def is_mapping(value: Any) -> bool:
    """A mapping."""
    return isinstance(value, dict)


def is_texts(value: Any) -> bool:
    """A list of strings."""
    return isinstance(value, list) and all(map(is_text, value))


def or_none(check: Check) -> Check:
    """The same, or None."""
    return lambda value: value is None or check(value)


def wrong_field(content: Mapping[str, Any], fields: Mapping[str, Check]) -> str | None:
    """Which field is missing or of another type than it should be, None if none is."""
    for name, check in fields.items():
        if name not in content:
            return f"has no {name}"
        if not check(content[name]):
            return f"its {name} is of the wrong type"
    return None
