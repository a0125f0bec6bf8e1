"""JSON that qsweep wrote, read again into frozen dataclasses: one reader, which believes nothing.

Files are edited, copied and damaged. What is not of the types that a dataclass names is refused in
one line that says which field it is; strings are no numbers, true is no 1, and unknown names are
none that were written here.

Example:
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Point:
    ...     x: float
    ...     labels: tuple[str, ...] = ()
    >>> parse(Point, '{"x": 1, "labels": ["a"]}')
    Point(x=1.0, labels=('a',))
    >>> parse(Point, '{"x": "1"}')
    Traceback (most recent call last):
    qsweep.base.typed_json.JsonMismatch: x: input should be a valid number, not "1"
"""

import json
import re
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from qsweep.base.files import read_regular
from qsweep.base.schema import adapter_of

T = TypeVar("T")
Unknown = Literal["forbid", "ignore"]
_LONGEST_VALUE = 60
# Halves of surrogate pairs: bytes of a path in a locale of ASCII. pydantic takes none.
_LONE_SURROGATE = re.compile(
    r"\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f])|(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f][0-9a-f]{2}", re.I
)


class JsonMismatch(ValueError):
    """A JSON text is none, or not of the wanted type; says in one line where and why."""


def parse(cls: type[T], text: str | bytes, *, unknown: Unknown = "forbid") -> T:
    """The value of a type (a dataclass, a list of some, …) that a JSON text spells.

    Args:
        cls: What is wanted. Fields with a default may be absent; a sequence is best a ``tuple``.
        text: The JSON, infinities and NaN as Python's ``json`` writes them. Halves of surrogate
            pairs become U+FFFD.
        unknown: ``ignore`` passes over names that the dataclasses do not have, as in files of which
            only a part is of interest.

    Raises:
        JsonMismatch: names the first field that is wrong.
    """
    from pydantic import ValidationError

    if isinstance(text, bytes) and rb"\ud" in text:
        text = text.decode(errors="replace")
    if isinstance(text, str):
        text = _LONE_SURROGATE.sub(r"\\ufffd", text)
    try:
        return adapter_of(cast("Any", cls)).validate_json(text, strict=True, extra=unknown)
    except ValidationError as error:
        first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        raise JsonMismatch(f"{place}: no such field")
    if first["type"] in ("missing", "missing_argument"):
        raise JsonMismatch(f"has no {place}")
    message = f"{first['msg'][0].lower()}{first['msg'][1:]}"
    if first["type"] == "json_invalid":
        raise JsonMismatch(message)
    given = json.dumps(first["input"])
    given = given if len(given) <= _LONGEST_VALUE else given[: _LONGEST_VALUE - 1] + "…"
    raise JsonMismatch(f"{place}: {message}, not {given}" if place else f"{message}, not {given}")


def convert(cls: type[T], value: Any, *, unknown: Unknown = "forbid") -> T:
    """The same for what a JSON text has been parsed to; see :func:`parse`."""
    return parse(cls, json.dumps(value), unknown=unknown)


def convert_or_none(cls: type[T], value: Any, *, unknown: Unknown = "ignore") -> T | None:
    """The same, or None where it is not of the type: for parts of a file that may be left out."""
    try:
        return convert(cls, value, unknown=unknown)
    except JsonMismatch:
        return None


def read(cls: type[T], file: Path, *, unknown: Unknown = "forbid") -> T:
    """The value in a file; see :func:`parse`.

    Raises:
        OSError: it is missing, no regular file, or may not be read.
        JsonMismatch: it holds something else.
    """
    return parse(cls, read_regular(file), unknown=unknown)
