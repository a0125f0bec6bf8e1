"""What manifests hold, by kind of entry: checked where no seal says that it is intact."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsweep.base.contents import has_figures
from qsweep.base.files import read_json
from qsweep.base.typed_json import JsonMismatch, convert


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
class _Tensors:
    left_out: list[str]


@dataclass(frozen=True)
class _Importance:
    shared_s: float


@dataclass(frozen=True)
class _Sensitivities:
    layers: int
    shared_s: float


_CONTENTS: Mapping[str, type] = {
    "artifacts": _Artifact,
    "measurements": _Measurement,
    "tensors": _Tensors,
    "tasks": _Task,
    "texts": _Text,
    "importances": _Importance,
    "sensitivities": _Sensitivities,
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
        if not isinstance(numbers, dict) or _text(numbers.get(name)) != _text(content[name]):
            return f"its {name} are not those of measurement.json"
    return None


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
