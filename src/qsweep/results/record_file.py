"""Records as JSON: their one reader and their one writer.

They lie in ``trials/KEY.json`` of a sweep and as ``record.json`` in a tracker's runs. Anything may
lie there: what is no record counts as absent, and :func:`record_of` says why it is none.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from qsweep.base.contents import is_number
from qsweep.base.errors import QsweepError
from qsweep.base.files import read_json, write_json
from qsweep.base.secrets import hidden_tree
from qsweep.results.columns.views import UnknownFigure, check_figures
from qsweep.results.judged import judged
from qsweep.results.record import (
    ArtifactFacts,
    CalibrationCoverage,
    Figures,
    Measurement,
    Record,
    Speed,
    TaskScore,
    Worst,
)
from qsweep.text.windows import preset_name, with_preset_names

VERSION = 2
"""Of the JSON; records of before there was a number are of version 1 and of the same shape."""

T = TypeVar("T")
# Options that rows are told apart by.
_OPTIONS = ("bits", "group_size", "desc_act", "sym", "type")
# Fields that version 1 wrote of every trial, and of finished ones, whether or not they had a value:
# the shape is kept, and with it what a tracker knows a record by.
_RECORD = (
    "reason", "calibration", "model_hash", "artifact", "speed", "quantize_s", "shared_s",
    "evaluate_s", "peak_memory_gb", "peak_host_memory_gb",
)  # fmt: skip
_FINISHED = ("vocab_size", "calibration_tokens", "device", "dtype")


class NotARecord(QsweepError):
    """What was read is no record, or one of a later version; the line says what is wrong where."""


def record_of(content: Any) -> Record:
    """A record from its JSON, of this or of an earlier version. What is absent has its default.

    Raises:
        NotARecord: It is none, of a later version, has a field or a figure that is not known, or a
            value of the wrong type.
    """
    if not isinstance(content, dict):
        raise NotARecord("not a record: it is no mapping")
    content = dict(content)
    version = content.pop("version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= VERSION:
        raise NotARecord(f"not a record of version 1 to {VERSION}: version {version!r}")
    record = read_as(Record, _with_preset_names_now(content))
    for name in _OPTIONS:
        if isinstance(record.options.get(name), (list, dict)):
            raise NotARecord(f"options.{name}: a plain value is wanted")
    if record.config.get("model") is not None and not record.model_config:
        raise NotARecord("config.model: a mapping is wanted")
    if record.measurements and not any(m.primary for m in record.measurements):
        first = dataclasses.replace(record.measurements[0], primary=True)
        record = dataclasses.replace(record, measurements=(first, *record.measurements[1:]))
    return judged(record)


def _with_preset_names_now(content: dict[str, Any]) -> dict[str, Any]:
    """A record of an older version, its presets called as they are today."""
    found = dict(content)
    if isinstance(content.get("config"), dict):
        found["config"] = with_preset_names(content["config"])
    if isinstance(content.get("measurements"), list):
        found["measurements"] = [_with_preset_name(m) for m in content["measurements"]]
    return found


def _with_preset_name(measurement: Any) -> Any:
    """The same of a measurement, and of what is none nothing."""
    if not isinstance(measurement, dict):
        return measurement
    found = dict(measurement)
    if isinstance(found.get("preset"), str):
        found["preset"] = preset_name(found["preset"])
    facts = found.get("facts")
    if isinstance(facts, dict) and isinstance(facts.get("preset"), str):
        found["facts"] = {**facts, "preset": preset_name(facts["preset"])}
    return found


def without_damage(content: Any) -> Record | None:
    """A record from its JSON without those of its measurements that are none; None if it is none."""
    if not isinstance(content, dict):
        return None
    measurements = content.get("measurements")
    if isinstance(measurements, list):
        whole = [m for m in measurements if _attempt(functools.partial(read_as, Measurement), m)]
        content = {**content, "measurements": whole}
    return _attempt(record_of, content)


def content_of(record: Record) -> dict[str, Any]:
    """A record as JSON; :func:`record_of` reads it to an equal one."""
    return {"version": VERSION, **_plain(record)}


def read_record(file: Path) -> Record | None:
    """The record in a file, passwords left out; None if there is none that can be read."""
    try:
        return _attempt(record_of, hidden_tree(read_json(file)))
    except (OSError, ValueError):
        return None


def read_records(directory: Path) -> Iterator[tuple[Path, Record | None]]:
    """The files of a sweep's trials in the order of their names, each with its record or None."""
    for file in sorted((directory / "trials").glob("*.json")):
        yield file, read_record(file)


def write_record(file: Path, record: Record) -> None:
    """Write a record, atomically."""
    write_json(file, content_of(record))


def _attempt(read: Callable[[Any], T], content: Any) -> T | None:
    try:
        return read(content)
    except NotARecord:
        return None


# --- one reader for all the classes of a record ------------------------------------------------


def read_as(cls: type[T], content: Any, where: str = "") -> T:
    """One of the record's classes from its JSON. A null where a value belongs counts as absent.

    Raises:
        NotARecord: The line names the field.
    """
    if cls is Speed:
        content = {"figures": content}
    if not isinstance(content, dict):
        raise _wrong(where, "a mapping", content)
    hints = _hints(cls)  # type: ignore[arg-type]
    found = {}
    for name, value in content.items():
        if name not in hints:
            raise NotARecord(f"{_at(where, name)}: a record has no such field")
        if value is not None or type(None) in _members(hints[name]):
            found[name] = _value(hints[name], value, _at(where, name))
    for required in dataclasses.fields(cls):  # type: ignore[arg-type]
        none = dataclasses.MISSING
        absent = required.default is none and required.default_factory is none
        if absent and required.name not in found:
            raise NotARecord(f"{_at(where, required.name)}: missing")
    made = cls(**found)
    try:
        if isinstance(made, Measurement):
            check_figures("measurement", made.metrics, where)
        if isinstance(made, Speed):
            check_figures("speed", made.figures, where)
    except UnknownFigure as error:
        raise NotARecord(str(error)) from error
    return made


def _value(hint: Any, value: Any, where: str) -> Any:
    members = _members(hint)
    if hint is Any or (value is None and type(None) in members):
        return value
    (one, *_) = [member for member in members if member is not type(None)]
    origin, inner = get_origin(one), get_args(one)
    if float in members:
        return value if is_number(value) else _refuse(where, "a number", value)
    if one is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return value if whole else _refuse(where, "a whole number", value)
    if one in (str, bool):
        word = "a text" if one is str else "true or false"
        return value if isinstance(value, one) else _refuse(where, word, value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong(where, "a list", value)
        return tuple(_value(inner[0], item, f"{where}.{n}") for n, item in enumerate(value))
    if dataclasses.is_dataclass(one):
        return read_as(one, value, where)  # type: ignore[arg-type]
    if not isinstance(value, dict):
        raise _wrong(where, "a mapping", value)
    if one is Figures:
        return Figures(value)
    return {name: _value(inner[1], item, f"{where}.{name}") for name, item in value.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Speed):
        return dict(value.figures)
    if dataclasses.is_dataclass(value):
        kept = _written_empty(value)
        return {k: _plain(v) for k, v in vars(value).items() if v is not None or k in kept}
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def _written_empty(value: Any) -> tuple[str, ...]:
    """The fields that are written as null where they are empty; others are then left out."""
    if isinstance(value, Record):
        more = ("suffers_most",) * (value.tasks is not None) + _FINISHED * value.finished
        return (*_RECORD, *more)
    if isinstance(value, TaskScore):
        return ("reason", "chance") if value.metric else ("reason",)
    return {
        ArtifactFacts: ("key", "path", "format", "size_gb", "bpw", "bpw_total"),
        Measurement: ("key", "verdict", "file"),
        Worst: ("retention",),
        CalibrationCoverage: ("asked", "distinct"),
    }.get(type(value), ())


def _refuse(where: str, wanted: str, value: Any) -> Any:
    raise _wrong(where, wanted, value)


def _wrong(where: str, wanted: str, value: Any) -> NotARecord:
    return NotARecord(f"{where or 'record'}: {wanted} is wanted, not {str(value)[:40]!r}")


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


@functools.cache
def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, else the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
