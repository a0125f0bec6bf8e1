"""Values and calls between the process that runs a program and the one that judges it.

Messages are JSON behind their length. Plain data crosses by value, everything else as a number that
its owner knows it by; nothing that arrives is ever executed. Either side may be asked something
while it waits for an answer.
"""

import collections
import datetime
import decimal
import fractions
import json
import socket
from collections.abc import Callable
from typing import Any

# What a message may hold, bytes.
_LIMIT = 64 << 20
# Deeper nesting than this is no data that a test compares.
_DEPTH = 200

# Types that cross by value besides JSON's own: how they are written, and made again.
_TYPES: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "int": (int, hex, lambda text: int(text, 16)),
    "float": (float, repr, float),
    "complex": (complex, lambda z: [repr(z.real), repr(z.imag)], lambda p: complex(*map(float, p))),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "bytearray": (bytearray, bytearray.hex, bytearray.fromhex),
    "range": (range, lambda r: [hex(n) for n in (r.start, r.stop, r.step)],
              lambda parts: range(*(int(n, 16) for n in parts))),
    "Decimal": (decimal.Decimal, str, decimal.Decimal),
    "Fraction": (fractions.Fraction, str, fractions.Fraction),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "timedelta": (datetime.timedelta, lambda d: [d.days, d.seconds, d.microseconds],
                  lambda parts: datetime.timedelta(*parts)),
}  # fmt: skip
_NAIVE: dict[str, Any] = {"datetime": datetime.datetime, "time": datetime.time}
_SEQUENCES = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque,
}  # fmt: skip
_MAPPINGS = {
    "dict": dict, "Counter": collections.Counter, "OrderedDict": collections.OrderedDict,
}  # fmt: skip
_NAMES: dict[Any, str] = {kind: name for name, (kind, _, _) in _TYPES.items()}
_NAMES_SEQUENCE: dict[Any, str] = {kind: name for name, kind in _SEQUENCES.items()}
_NAMES_MAPPING: dict[Any, str] = {kind: name for name, kind in _MAPPINGS.items()}
# A function that is called with what may change in place, for the caller to see it change as well.
MUTABLE = (list, dict, set, bytearray, collections.deque, collections.Counter,
           collections.OrderedDict)  # fmt: skip


class Lost(Exception):  # noqa: N818 - it is no error of the program's
    """The other side has ended, or does not keep to the protocol."""


def encode(value: Any, reference: Callable[[Any], Any], depth: int = 0) -> Any:
    """A value as JSON; ``reference`` says how what is no plain data is referred to."""
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int and abs(value) < 1 << 53:
        return value
    if depth > _DEPTH:
        raise RecursionError("nested too deeply")
    if kind in _NAMES:
        return {"is": _NAMES[kind], "of": _TYPES[_NAMES[kind]][1](value)}
    if kind in _NAIVE.values() and value.tzinfo is None:
        return {"is": kind.__name__, "of": value.isoformat()}
    if kind in _NAMES_SEQUENCE:
        return {
            "is": _NAMES_SEQUENCE[kind],
            "of": [encode(item, reference, depth + 1) for item in value],
        }
    if kind in _NAMES_MAPPING:
        pairs = [
            [encode(key, reference, depth + 1), encode(item, reference, depth + 1)]
            for key, item in value.items()
        ]
        return {"is": _NAMES_MAPPING[kind], "of": pairs}
    return {"is": "reference", "of": reference(value)}


def decode(message: Any, reference: Callable[[Any], Any]) -> Any:
    """The value that :func:`encode` wrote. Raises :class:`Lost` for what it never writes."""
    try:
        return _decode(message, reference)
    except (TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
        raise Lost(f"a message that says nothing ({type(error).__name__})") from error


def _decode(message: Any, reference: Callable[[Any], Any]) -> Any:
    if message is None or type(message) in (bool, str, int):
        return message
    kind, content = message["is"], message["of"]
    if kind == "reference":
        return reference(content)
    if kind in _TYPES:
        return _TYPES[kind][2](content)
    if kind in _NAIVE:
        return _NAIVE[kind].fromisoformat(content)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](_decode(item, reference) for item in content)
    return _MAPPINGS[kind](
        {_decode(key, reference): _decode(item, reference) for key, item in content}
    )


class Channel:
    """Messages over a connected socket, and calls in both directions.

    Args:
        descriptor: The socket's.
        serve: Answers a request of the other side: a JSON value in, a JSON value out.
    """

    def __init__(self, descriptor: int, serve: Callable[[Any], Any]):
        self._socket = socket.socket(fileno=descriptor)
        self._serve = serve

    def call(self, request: Any) -> Any:
        """Ask the other side, and answer whatever it asks meanwhile."""
        self._send({"ask": request})
        while "answer" not in (message := self._receive()):
            self._respond(message)
        return message["answer"]

    def serve_for_ever(self) -> None:
        """Answer requests until the other side has ended."""
        while True:
            self._respond(self._receive())

    def tell(self, answer: Any) -> None:
        """Send an answer that nobody has asked for yet: the first one."""
        self._send({"answer": answer})

    def hear(self) -> Any:
        """The answer to no question: the first one."""
        return self._receive().get("answer")

    def _respond(self, message: Any) -> None:
        self._send({"answer": self._serve(message.get("ask"))})

    def _send(self, message: Any) -> None:
        text = json.dumps(message).encode()
        if len(text) > _LIMIT:
            raise MemoryError("a value is too large to be handed over")
        try:
            self._socket.sendall(len(text).to_bytes(8, "big") + text)
        except OSError as error:
            raise Lost("it has ended") from error

    def _receive(self) -> dict[str, Any]:
        size = int.from_bytes(self._read(8), "big")
        if size > _LIMIT:
            raise Lost("a message that is too long")
        try:
            message = json.loads(self._read(size))
        except (ValueError, RecursionError) as error:
            raise Lost("a message that is no JSON") from error
        if not isinstance(message, dict):
            raise Lost("a message that is no request and no answer")
        return message

    def _read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = self._socket.recv(min(size - len(parts), 1 << 20))
            except OSError as error:
                raise Lost("it has ended") from error
            if not part:
                raise Lost("it has ended")
            parts += part
        return bytes(parts)
