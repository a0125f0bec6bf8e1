"""What manifests and records hold, checked field by field where no seal says that it is intact."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsweep.base.files import read_json
from qsweep.base.typed_json import JsonMismatch, convert

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


# By kind of entry, the fields that it must have, beside others.
@dataclass(frozen=True)
class _Size:
    weight_bytes: float
    linear_bits: float
    linear_weights: float
    total_bits: float
    parameters: float


@dataclass(frozen=True)
class _Artifact:
    format: str
    size: _Size
    runtimes: list[str]
    details: dict[str, Any]


@dataclass(frozen=True)
class _Measurement:
    metrics: dict[str, Any]
    facts: dict[str, Any]
    evaluate_s: float


@dataclass(frozen=True)
class _Task:
    status: str
    reason: str | None


@dataclass(frozen=True)
class _FinishedTask(_Task):
    seconds: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Text:
    fingerprint: str


@dataclass(frozen=True)
class _Importance:
    shared_s: float


_CONTENTS: Mapping[str, type] = {
    "artifacts": _Artifact,
    "measurements": _Measurement,
    "tasks": _Task,
    "texts": _Text,
    "importances": _Importance,
}


def problem(kind: str, content: Any) -> str | None:
    """What is wrong with the content of an entry's manifest, None if nothing is."""
    if not isinstance(content, dict):
        return "its content is no mapping"
    finished = kind == "tasks" and content.get("status") == "finished"
    wanted = _FinishedTask if finished else _CONTENTS.get(kind)
    if kind != "models" and not all(map(has_figures, (content, content.get("metrics") or {}))):
        return "holds something else where a number belongs"
    try:
        if wanted is not None:
            convert(wanted, content, unknown="ignore")
    except JsonMismatch as error:
        return str(error)
    return None


def wrong_field(content: Mapping[str, Any], fields: Mapping[str, Check]) -> str | None:
    """Which field is missing or of another type than it should be, None if none is."""
    for name, check in fields.items():
        if name not in content:
            return f"has no {name}"
        if not check(content[name]):
            return f"its {name} is of the wrong type"
    return None


def contradiction(kind: str, path: Path, content: Mapping[str, Any]) -> str | None:
    """Where a manifest without a seal says another thing than the files of its entry."""
    if kind != "measurements":
        return None
    try:
        numbers = read_json(path / "measurement.json")
    except (OSError, ValueError) as error:
        return str(error)
    for name in ("metrics", "facts"):
        # As text, since what is not a number differs from itself.
        if not is_mapping(numbers) or _text(numbers.get(name)) != _text(content[name]):
            return f"its {name} are not those of measurement.json"
    return None


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
