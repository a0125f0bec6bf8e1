"""Plain mappings to frozen dataclasses, with errors that name the nearest right word."""

import dataclasses
import difflib
import functools
import importlib
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from qsweep.base.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Construct a dataclass from a mapping, checking names and types.

    ``where`` is the dotted place of the mapping in the configuration, for messages. Raises
    :class:`~qsweep.base.errors.ConfigError` for an unknown field, a missing one or a value of the wrong
    type; strings that spell a number are taken as one, as on a command line. A number is neither
    true nor false, nor infinite, nor a NaN.
    """
    from pydantic import ValidationError

    names = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise ConfigError(f"{_at(where, name)}: no such option{nearest(name, names)}")
    _check_numbers(cls, values, where)
    try:
        return adapter_of(cast("Any", cls)).validate_python(dict(values))
    except ValidationError as error:
        first, *others = error.errors()
        if isinstance(cause := first.get("ctx", {}).get("error"), ConfigError):
            raise cause from error
        place = _place_of(first)
        given = "" if first["type"] == "missing" else f"={first['input']}"
        message = first["msg"].removeprefix("Value error, ")
        # Of what may be a word as well (`auto`) pydantic tells one by one what each was not.
        words = [e for e in others if e["type"] == "literal_error" and _place_of(e) == place]
        if words and first["type"] != "literal_error":
            expected = f"Input should be {words[0]['ctx']['expected']} or "
            message = message.replace("Input should be ", expected, 1)
        if first["type"] == "tuple_type":
            message = f"must be a list, as in {_at(where, place)}=[{first['input']}]"
        raise ConfigError(
            f"{_at(where, place)}{given}: {message[0].lower()}{message[1:]}"
        ) from error


def _check_numbers(cls: Any, values: Mapping[str, Any], where: str) -> None:
    # pydantic takes true for 1, and a NaN for a float: each would pass every check of a range.
    hints = _hints(cls)
    for name, value in values.items():
        if name in hints:
            _check_number(hints[name], value, _at(where, name))


def _check_number(hint: Any, value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        for member in _members(hint):
            if dataclasses.is_dataclass(member):
                _check_numbers(member, value, place)
        return
    if isinstance(value, (list, tuple)):
        for member in _members(hint):
            for inner in get_args(member):
                if inner is not Ellipsis:
                    for item in value:
                        _check_number(inner, item, place)
        return
    members = _members(hint)
    if not {int, float} & set(members):
        return
    if isinstance(value, bool) and bool not in members and value not in _literals(members):
        raise ConfigError(f"{place}={str(value).lower()}: a number is wanted here")
    if _is_nonfinite(value) and str not in members and value not in _literals(members):
        raise ConfigError(f"{place}={value}: must be a finite number")


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, else the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _literals(members: Iterable[Any]) -> list[Any]:
    return [v for member in members if get_origin(member) is Literal for v in get_args(member)]


def _is_nonfinite(value: Any) -> bool:
    try:
        return not math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
    except OverflowError:  # an integer beyond what a float holds
        return True


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


@functools.cache
def adapter_of(cls: Any) -> "TypeAdapter[Any]":
    """pydantic's validator of a type, kept: making one takes ten times as long as using it."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def locate(target: str, where: str) -> type:
    """The class that ``package.module.Class`` names. Raises ConfigError where it names none."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: {target!r} cannot be imported ({error})") from error
    if not dataclasses.is_dataclass(found):
        raise ConfigError(f"{where}: {target!r} is not a dataclass")
    return found  # type: ignore[return-value]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as pairs of a dotted name and a value."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def nearest(word: str, words: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or the possible words where none is near."""
    known = sorted(set(map(str, words)))  # YAML's keys may be anything
    if close := difflib.get_close_matches(str(word), known, n=2, cutoff=0.6):
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return f"; there are {', '.join(known)}" if known else ""


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where and name else where or name


def _place_of(error: Any) -> str:
    """The dotted name of the value that one of pydantic's errors is about."""
    return ".".join(str(part) for part in error["loc"] if not _is_tag(part))


def _is_tag(part: Any) -> bool:
    # pydantic adds the tried member of a union to the location
    return part in ("str", "int", "float", "bool") or (isinstance(part, str) and "[" in part)
