"""What an artifact says of linear layers that stayed in 16 bits."""

import re
from collections.abc import Mapping
from typing import Any

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def kept_details(kept: Mapping[str, str]) -> dict[str, Any]:
    """The layers' names, and by the reason why they stayed what is common to them.

    >>> kept_details({"layers.0.gate": "router", "layers.1.gate": "router"})["kept_by"]
    {'router': ['layers.*.gate']}

    Args:
        kept: By name, the reason: what the layer is, the rule that says so, or ``shape``, where it
            is too small for the container.
    """
    if not kept:
        return {}
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(kept.items()):
        common, own = _NUMBER.sub("*", name), reasons.setdefault(reason, [])
        if common not in own:
            own.append(common)
    return {"kept_layers": sorted(kept), "kept_by": reasons}
