"""Plain mappings to frozen dataclasses, with errors that name the nearest right word."""

import dataclasses
import difflib
import functools
import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from qsweep.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Construct a dataclass from a mapping, checking names and types.

    ``where`` is the dotted place of the mapping in the configuration, for messages. Raises
    :class:`~qsweep.errors.ConfigError` for an unknown field, a missing one or a value of the wrong
    type; strings that spell a number are taken as one, as on a command line.
    """
    from pydantic import ValidationError

    names = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise ConfigError(f"{_at(where, name)}: no such option{nearest(name, names)}")
    try:
        return _adapter(cast("Any", cls)).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), ConfigError):
            raise cause from error
        place = ".".join(str(part) for part in first["loc"] if not _is_tag(part))
        given = "" if first["type"] == "missing" else f"={first['input']}"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "tuple_type":
            message = f"must be a list, as in {_at(where, place)}=[{first['input']}]"
        raise ConfigError(
            f"{_at(where, place)}{given}: {message[0].lower()}{message[1:]}"
        ) from error


@functools.cache
def _adapter(cls: Any) -> "TypeAdapter[Any]":
    # Making one takes ten times as long as using it.
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


def _is_tag(part: Any) -> bool:
    # pydantic adds the tried member of a union to the location
    return part in ("str", "int", "float", "bool") or (isinstance(part, str) and "[" in part)
