"""Records as they lie on disk, ``trials/KEY.json``: their one reader, and what it takes for one."""

from collections.abc import Iterator, Mapping
from pathlib import Path
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
from qsweep.base.files import read_json
from qsweep.base.secrets import hidden_tree
from qsweep.text.windows import preset_name, with_preset_names

# Options that rows are told apart by.
_OPTIONS = ("bits", "group_size", "desc_act", "sym", "type")


def _has_plain_options(value: Any) -> bool:
    return is_mapping(value) and not any(isinstance(value.get(o), (list, dict)) for o in _OPTIONS)


_TASK: Mapping[str, Check] = {
    "name": is_text,
    "status": is_text,
    "reason": or_none(is_text),
    "capability": is_text,
}


def _is_task(value: Any) -> bool:
    return has_figures(value) and wrong_field(value, _TASK) is None


# Of the fields that a record has, their types; older versions wrote fewer of them.
_FIELDS: Mapping[str, Check] = {
    **dict.fromkeys(("name", "model", "method", "backend"), or_none(is_text)),
    **dict.fromkeys(("reason", "calibration", "command", "log", "sweep"), or_none(is_text)),
    **dict.fromkeys(("environment", "artifact"), or_none(is_mapping)),
    "options": or_none(_has_plain_options),
    "config": or_none(lambda value: is_mapping(value) and is_mapping(value.get("model") or {})),
    **dict.fromkeys(("quantize_s", "evaluate_s", "shared_s", "seconds"), or_none(is_number)),
    **dict.fromkeys(("peak_memory_gb", "peak_host_memory_gb"), or_none(is_number)),
    **dict.fromkeys(("started", "ended", "device", "dtype", "fidelity"), or_none(is_text)),
    "speed": or_none(has_figures),
    "measurements": or_none(lambda value: isinstance(value, list)),
    "tasks": or_none(lambda value: isinstance(value, list) and all(map(_is_task, value))),
    "capabilities": or_none(
        lambda value: is_mapping(value) and all(map(has_figures, value.values()))
    ),
    "suffers_most": or_none(
        lambda value: has_figures(value) and not wrong_field(value, {"capability": is_text})
    ),
}
_ARTIFACT: Mapping[str, Check] = {
    **dict.fromkeys(("key", "path", "format"), or_none(is_text)),
    **dict.fromkeys(("size_gb", "bpw", "bpw_total"), or_none(is_number)),
    "runtimes": or_none(is_texts),
    "details": or_none(is_mapping),
}
_MEASUREMENT: Mapping[str, Check] = {
    "corpus": is_text,
    "preset": is_text,
    "metrics": has_figures,
    "facts": or_none(is_mapping),
    "verdict": or_none(is_text),
    "file": or_none(is_text),
}


def read_record(file: Path) -> dict[str, Any] | None:
    """The record in a file, passwords left out; None if there is none that can be read."""
    try:
        content = hidden_tree(read_json(file))
    except (OSError, ValueError):
        return None
    whole = is_record(content) and all(map(is_measurement, content.get("measurements") or []))
    return with_preset_names_now(content) if whole else None


def with_preset_names_now(record: dict[str, Any]) -> dict[str, Any]:
    """A record of an older version, its presets called as they are today."""
    found = dict(record)
    if is_mapping(record.get("config")):
        found["config"] = with_preset_names(record["config"])
    if record.get("measurements"):
        found["measurements"] = list(map(_with_preset_name, record["measurements"]))
    return found


def _with_preset_name(measurement: Any) -> Any:
    if not is_measurement(measurement):
        return measurement
    found = {**measurement, "preset": preset_name(measurement["preset"])}
    facts = measurement.get("facts")
    if facts and isinstance(facts.get("preset"), str):
        found["facts"] = {**facts, "preset": preset_name(facts["preset"])}
    return found


def read_records(directory: Path) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """The files of a sweep's trials in the order of their names, each with its record or None."""
    for file in sorted((directory / "trials").glob("*.json")):
        yield file, read_record(file)


def is_record(content: Any) -> bool:
    """Whether it is a record of this or of an earlier version, its measurements aside."""
    return (
        is_mapping(content)
        and is_text(content.get("key"))
        and is_text(content.get("status"))
        and not _is_wrong(content, _FIELDS)
        and not _is_wrong(content.get("artifact") or {}, _ARTIFACT)
    )


def is_measurement(content: Any) -> bool:
    """Whether it is one of a record's measurements, with numbers where numbers belong."""
    needed = {"corpus", "preset", "metrics"}
    return is_mapping(content) and needed <= content.keys() and not _is_wrong(content, _MEASUREMENT)


def _is_wrong(content: Mapping[str, Any], fields: Mapping[str, Check]) -> bool:
    present = {name: check for name, check in fields.items() if name in content}
    return wrong_field(content, present) is not None
