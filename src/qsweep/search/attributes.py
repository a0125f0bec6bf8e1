"""What a study keeps of a trial beside its values, checked before anything relies on it."""

from collections.abc import Mapping
from typing import Any

from qsweep.base.contents import (
    Check,
    has_figures,
    is_mapping,
    is_number,
    is_text,
    is_texts,
    or_none,
    wrong_field,
)

_FINDING: Mapping[str, Check] = {
    "record": is_text,
    "params": is_mapping,
    "size_gb": is_number,
    "bpw": or_none(is_number),
    "verdict": or_none(is_text),
    "runtimes": is_texts,
    "serves": lambda value: isinstance(value, bool),
    "artifact": or_none(is_text),
    "host": is_text,
}


def _is_finding(value: Any) -> bool:
    return has_figures(value) and wrong_field(value, _FINDING) is None


def _is_span(value: Any) -> bool:
    # low, value, high; None stands for what is not known
    return isinstance(value, list) and len(value) == 3 and all(map(or_none(is_number), value))


def _is_outcome(value: Any) -> bool:
    return (
        is_mapping(value)
        and is_text(value.get("fidelity"))
        and is_mapping(value.get("spans"))
        and all(map(_is_span, value["spans"].values()))
    )


_ATTRIBUTES: Mapping[str, Check] = {
    "key": is_text,
    "name": is_text,
    "owner": is_text,
    "params": lambda value: is_mapping(value) and is_texts(list(value.values())),
    "reason": or_none(is_text),
    "outcome": or_none(_is_outcome),
    "finding": or_none(_is_finding),
}


def is_intact(attributes: Mapping[str, Any]) -> bool:
    """Whether what is there of a trial's attributes is of the types that a search gave them."""
    present = {name: check for name, check in _ATTRIBUTES.items() if name in attributes}
    return wrong_field(attributes, present) is None
