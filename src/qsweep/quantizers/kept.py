"""What an artifact says of linear layers that stayed in 16 bits."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_NUMBER, _STAR = re.compile(r"(?<=\.)\d+(?=\.)"), re.compile(r"(?<=\.)\*(?=\.)")


def kept_details(kept: Mapping[str, str]) -> dict[str, Any]:
    """The layers' names, and by the reason why they stayed what is common to them.

    >>> kept_details({"layers.0.gate": "router", "layers.1.gate": "router"})["kept_by"]
    {'router': ['layers.*.gate']}
    >>> kept_details({"layers.3.up": "*.3.*", "layers.3.down": "*.3.*"})["kept_by"]
    {'*.3.*': ['layers.3.down', 'layers.3.up']}

    Args:
        kept: By name, the reason: what the layer is, the rule that says so, or ``shape``, where it
            is too small for the container.
    """
    if not kept:
        return {}
    # Where all that are alike have one number in a place, it is that.
    alike: dict[tuple[str, str], list[list[str]]] = {}
    for name, reason in sorted(kept.items()):
        numbers = [match.group() for match in _NUMBER.finditer(name)]
        alike.setdefault((reason, _NUMBER.sub("*", name)), []).append(numbers)
    reasons: dict[str, list[str]] = {}
    for (reason, pattern), found in alike.items():
        places = iter([set(place) for place in zip(*found, strict=True)])

        def number(_: re.Match[str], places: Iterator[set[str]] = places) -> str:
            own = next(places)
            return own.pop() if len(own) == 1 else "*"

        reasons.setdefault(reason, []).append(_STAR.sub(number, pattern))
    return {"kept_layers": sorted(kept), "kept_by": reasons}
