"""Values and calls between the process that runs a program and the one that judges it.

Messages are JSON behind their length. Plain data crosses by value, everything else as a number that
its owner knows it by; nothing that arrives is ever executed. Either side may be asked something
while it waits for an answer.
"""

import collections
import datetime
import importlib
import json
import operator
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

# What a message may hold, bytes.
_LIMIT = 64 << 20
# Containers that are kept track of: what they hold together, each counted as sixteen more.
_TRACKED = 1 << 16
# Deeper nesting than this is no data that a test compares.
_DEPTH = 200


def _bound(number: Any) -> str | None:
    return None if number is None else hex(number)


# Types that cross by value besides JSON's own: how they are written, and made again.
_TYPES: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "int": (int, hex, lambda text: int(text, 16)),
    "float": (float, repr, float),
    "complex": (complex, lambda z: [repr(z.real), repr(z.imag)], lambda p: complex(*map(float, p))),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "memoryview": (memoryview, lambda view: view.tobytes().hex(),
                   lambda text: memoryview(bytes.fromhex(text))),
    "slice": (slice, lambda s: [_bound(n) for n in (s.start, s.stop, s.step)],
              lambda parts: slice(*(n and int(n, 16) for n in parts))),
    "Ellipsis": (type(...), lambda _: None, lambda _: ...),
    "NotImplemented": (type(NotImplemented), lambda _: None, lambda _: NotImplemented),
    "range": (range, lambda r: [hex(n) for n in (r.start, r.stop, r.step)],
              lambda parts: range(*(int(n, 16) for n in parts))),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "timedelta": (datetime.timedelta, lambda d: [d.days, d.seconds, d.microseconds],
                  lambda parts: datetime.timedelta(*parts)),
}  # fmt: skip
# Types whose modules most programs do without, by name: written and made again as text.
_LATE = {"Decimal": "decimal", "Fraction": "fractions"}
_TIMES: dict[str, Any] = {"datetime": datetime.datetime, "time": datetime.time}
_CONTAINERS: dict[str, Any] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque,
    "bytearray": bytearray, "dict": dict, "Counter": collections.Counter,
    "OrderedDict": collections.OrderedDict, "defaultdict": collections.defaultdict,
}  # fmt: skip
_NAMES: dict[Any, str] = {kind: name for name, (kind, _, _) in _TYPES.items()}
_NAMES_CONTAINER: dict[Any, str] = {kind: name for name, kind in _CONTAINERS.items()}
# A function that is called with what may change in place, for the caller to see it change as well.
MUTABLE = tuple(kind for kind in _CONTAINERS.values() if kind not in (tuple, frozenset))
# Classes that cross by name: an instance is no more than its data.
PLAIN_CLASSES = (*(kind for kind, _, _ in _TYPES.values()), *_TIMES.values(), *_CONTAINERS.values())


def is_late(kind: type) -> bool:
    """Whether a class is one of those whose modules are imported where they are needed."""
    module = sys.modules.get(_LATE.get(kind.__name__, ""))
    return module is not None and getattr(module, kind.__name__, None) is kind


class Disconnected(Exception):  # noqa: N818 - it is no error of the program's
    """The other side has ended, or does not keep to the protocol."""


class SharedContainers:
    """The containers that have crossed lately: what is one object here is one object there.

    Each has a number that both sides know, and a note of what it held when it crossed last.

    Args:
        first: The least number that this side gives; it gives every other one.
    """

    def __init__(self, first: int = 0) -> None:
        self.values: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._held: dict[int, list[Any] | bytes] = {}
        self._next = first

    def number(self, value: Any) -> int | None:
        """The number of a container that is known."""
        return self._numbers.get(id(value))

    def add(self, value: Any, number: int | None = None) -> int:
        """Number a container."""
        if number is None:
            number, self._next = self._next, self._next + 2
        elif number in self.values:
            raise Disconnected("a number given twice")
        self.values[number] = value  # which keeps its id from being another's
        self._numbers[id(value)] = number
        return number

    def note(self, number: int) -> None:
        """Remember what a container holds now."""
        self._held[number] = _held(self.values[number])

    def changed(self) -> list[int]:
        """Those that hold other objects than they did; not those that are being made."""
        return [n for n, held in self._held.items() if not _same(_held(self.values[n]), held)]

    def excess(self) -> list[int]:
        """The oldest, beyond what is kept track of."""
        room = _TRACKED
        for place, number in enumerate(reversed(self.values)):
            room -= 16 + len(self.values[number])
            if room < 0:
                return list(self.values)[: len(self.values) - place]
        return []

    def forget(self, numbers: Any) -> None:
        """Lose track of some."""
        for number in list(numbers):
            if number in self.values:
                self._numbers.pop(id(self.values.pop(number)), None)
                self._held.pop(number, None)


def _held(value: Any) -> list[Any] | bytes:
    if isinstance(value, bytearray):
        return bytes(value)
    return [*value, *value.values()] if isinstance(value, dict) else list(value)


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other) or len(one) != len(other):
        return False
    return bool(one == other) if isinstance(one, bytes) else all(map(operator.is_, one, other))


def encode(
    value: Any,
    reference: Callable[[Any], Any],
    memory: SharedContainers | None = None,
    depth: int = 0,
) -> Any:
    """A value as JSON.

    Args:
        value: Anything.
        reference: Says how what is no plain data is referred to.
        memory: Containers that it knows are named by their numbers, and others get one.
        depth: How deep the value is nested in others.
    """
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int and abs(value) < 1 << 53:
        return value
    if depth > _DEPTH:
        raise RecursionError("nested too deeply")
    if kind in _NAMES:
        return {"is": _NAMES[kind], "of": _TYPES[_NAMES[kind]][1](value)}
    if kind in _TIMES.values() and type(value.tzinfo) in (type(None), datetime.timezone):
        return {"is": kind.__name__, "of": value.isoformat()}
    if is_late(kind):
        return {"is": kind.__name__, "of": str(value)}
    if kind not in _NAMES_CONTAINER:
        return {"is": "reference", "of": reference(value)}
    if memory is None or kind not in MUTABLE:
        return {"is": _NAMES_CONTAINER[kind], "of": contents(value, reference, memory, depth)}
    if (number := memory.number(value)) is not None:
        return {"is": "same", "of": number}
    number = memory.add(value)
    held = contents(value, reference, memory, depth)
    return {"is": _NAMES_CONTAINER[kind], "number": number, "of": held}


def contents(
    value: Any, reference: Callable[[Any], Any], memory: SharedContainers | None, depth: int = 0
) -> Any:
    """What a container holds, encoded; arguments as for :func:`encode`."""
    if memory is not None and (number := memory.number(value)) is not None:
        memory.note(number)

    def inner(item: Any) -> Any:
        return encode(item, reference, memory, depth + 1)

    if isinstance(value, bytearray):
        return value.hex()
    if not isinstance(value, dict):
        return [inner(item) for item in value]
    pairs = [[inner(key), inner(item)] for key, item in value.items()]
    if type(value) is collections.defaultdict:
        return [inner(value.default_factory), pairs]
    return pairs


def decode(
    message: Any, reference: Callable[[Any], Any], memory: SharedContainers | None = None
) -> Any:
    """The value that :func:`encode` wrote. Raises :class:`Disconnected` for what it never writes."""
    try:
        return _decode(message, reference, memory or SharedContainers())
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as e:
        raise Disconnected(f"a message that says nothing ({type(e).__name__})") from e


def _decode(message: Any, reference: Callable[[Any], Any], memory: SharedContainers) -> Any:
    if message is None or type(message) in (bool, str, int):
        return message
    kind, content = message["is"], message["of"]
    if kind == "reference":
        return reference(content)
    if kind == "same":
        return memory.values[content]
    if kind in _TYPES:
        return _TYPES[kind][2](content)
    if kind in _LATE:
        return getattr(importlib.import_module(_LATE[kind]), kind)(content)
    if kind in _TIMES:
        return _TIMES[kind].fromisoformat(content)
    if (made := _CONTAINERS[kind]) not in MUTABLE:
        return made(_decode(item, reference, memory) for item in content)
    value = made()
    if "number" in message:
        memory.add(value, int(message["number"]))
    fill(value, content, reference, memory)
    return value


def fill(
    value: Any, content: Any, reference: Callable[[Any], Any], memory: SharedContainers
) -> None:
    """Let a container hold what :func:`contents` wrote, and nothing else.

    Args:
        value: The container, which is changed.
        content: What it shall hold, encoded.
        reference: The object that a reference means.
        memory: The containers that both sides know.
    """
    if isinstance(value, bytearray):
        value[:] = bytes.fromhex(content)
    elif isinstance(value, dict):
        if type(value) is collections.defaultdict:
            factory, content = content
            value.default_factory = _decode(factory, reference, memory)
        pairs = [[_decode(part, reference, memory) for part in pair] for pair in content]
        value.clear()
        for key, item in pairs:
            value[key] = item
    else:
        items = [_decode(item, reference, memory) for item in content]
        value.clear()
        value.update(items) if isinstance(value, set) else value.extend(items)
    if (number := memory.number(value)) is not None:
        memory.note(number)


class Channel:
    """Messages over a connected socket, and calls in both directions.

    Args:
        descriptor: The socket's.
        serve: Answers a request of the other side: a JSON value in, a JSON value out.
    """

    def __init__(self, descriptor: int, serve: Callable[[Any], Any]):
        self._descriptor = descriptor
        self._serve = serve
        # A thread asks once another has its answer.
        self.turn = threading.RLock()

    def call(self, request: Any) -> Any:
        """Ask the other side, and answer whatever it asks meanwhile."""
        with self.turn:
            self._send({"ask": request})
            while "answer" not in (message := self._receive()):
                self._respond(message)
        return message["answer"]

    def serve_for_ever(self) -> None:
        """Answer requests until the other side has ended."""
        while True:
            self._respond(self._receive())

    def send_first(self, answer: Any) -> None:
        """Send an answer that nobody has asked for yet: the first one."""
        self._send({"answer": answer})

    def receive_first(self) -> Any:
        """The answer to no question: the first one."""
        return self._receive().get("answer")

    def _respond(self, message: Any) -> None:
        self._send({"answer": self._serve(message.get("ask"))})

    def _send(self, message: Any) -> None:
        text = json.dumps(message).encode()
        if len(text) > _LIMIT:
            raise MemoryError("a value is too large to be handed over")
        try:
            left = memoryview(len(text).to_bytes(8, "big") + text)
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            raise Disconnected("it has ended") from error

    def _receive(self) -> dict[str, Any]:
        size = int.from_bytes(self._read(8), "big")
        if size > _LIMIT:
            raise Disconnected("a message that is too long")
        try:
            message = json.loads(self._read(size))
        except (ValueError, RecursionError) as error:
            raise Disconnected("a message that is no JSON") from error
        if not isinstance(message, dict):
            raise Disconnected("a message that is no request and no answer")
        return message

    def _read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = os.read(self._descriptor, min(size - len(parts), 1 << 20))
            except OSError as error:
                raise Disconnected("it has ended") from error
            if not part:
                raise Disconnected("it has ended")
            parts += part
        return bytes(parts)
