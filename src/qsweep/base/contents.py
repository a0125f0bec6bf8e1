"""What counts as a number, and as figures, in parsed JSON; for whole files see ``typed_json``."""

import re
from typing import Any

# Figures that others calculate with or format; what else a maker notes may be any JSON.
_FIGURE = re.compile(
    r"ppl(_stderr|_ratio(_low|_high)?)?|kld(_stderr|_low|_high|_median|_p\d+|_max|_native|_floor_\w+)?|ear"
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
