"""One side's objects, and stand-ins for those of the other.

What is no plain data stays with its owner; the other side holds a :class:`Remote`, whose every use
is a request. So a test can work with a program's functions, classes, instances and generators as
if they were its own, though they live in another process.
"""

import builtins
import contextlib
import copy
import io
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from qsweep.tasks.sandbox.inside.wire import MUTABLE, Channel, Lost, decode, encode

# What may be done with an object, beside calling it: the operation's name, and how it is done.
_OPERATIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in (
        "eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod",
        "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift", "neg", "pos", "invert", "index",
        "getitem", "setitem", "delitem", "contains",
    )},
    "iter": iter, "next": next, "len": len, "repr": repr, "str": str, "hash": hash,
    "bool": bool, "int": int, "float": float, "complex": complex, "abs": abs, "round": round,
    "divmod": divmod, "reversed": reversed, "format": format, "dir": dir,
    "getattr": getattr, "setattr": setattr, "delattr": delattr,
    "isinstance": isinstance, "issubclass": issubclass,
    "copy": copy.copy, "deepcopy": lambda value, _=None: copy.deepcopy(value),
    "enter": lambda value: type(value).__enter__(value),
    "exit": lambda value, *_: type(value).__exit__(value, None, None, None),
}  # fmt: skip
# What the program may do with objects of the test that it was handed: no more than use a function
# or an iterator. Attributes would lead it to everything else.
_HARMLESS = ("iter", "next")
_SPECIAL = {
    "eq": "__eq__", "ne": "__ne__", "lt": "__lt__", "le": "__le__", "gt": "__gt__", "ge": "__ge__",
    "add": "__add__", "sub": "__sub__", "mul": "__mul__", "truediv": "__truediv__",
    "floordiv": "__floordiv__", "mod": "__mod__", "pow": "__pow__", "matmul": "__matmul__",
    "and_": "__and__", "or_": "__or__", "xor": "__xor__", "lshift": "__lshift__",
    "rshift": "__rshift__", "neg": "__neg__", "pos": "__pos__", "invert": "__invert__",
    "index": "__index__", "getitem": "__getitem__", "setitem": "__setitem__",
    "delitem": "__delitem__", "contains": "__contains__", "iter": "__iter__", "next": "__next__",
    "len": "__len__", "repr": "__repr__", "str": "__str__", "hash": "__hash__", "bool": "__bool__",
    "int": "__int__", "float": "__float__", "complex": "__complex__", "abs": "__abs__",
    "round": "__round__", "divmod": "__divmod__", "reversed": "__reversed__",
    "format": "__format__", "dir": "__dir__", "copy": "__copy__", "deepcopy": "__deepcopy__",
    "enter": "__enter__", "exit": "__exit__", "getattr": "__getattr__", "delattr": "__delattr__",
}  # fmt: skip
# Operators that a plain value on their left leaves to the object on their right.
_REFLECTED = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_",
              "xor", "lshift", "rshift", "divmod")  # fmt: skip
# What a call may print and hand back with its result; more goes to the output at once.
_PRINTED = 32768


class Remote:
    """Stands for an object of the other side."""

    __slots__ = ("_remote_number", "_remote_peer")
    _remote_number: int
    _remote_peer: "Peer"

    def __init__(self, peer: "Peer", number: int):
        object.__setattr__(self, "_remote_peer", peer)
        object.__setattr__(self, "_remote_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        return self._remote_peer.request("call", self, args, kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote_peer.request("setattr", self, (name, value))

    def __instancecheck__(self, instance: Any) -> bool:
        # The other way round: is what stands first an instance of me?
        return isinstance(instance, Remote) and bool(
            self._remote_peer.request("isinstance", instance, (self,))
        )

    def __subclasscheck__(self, cls: Any) -> bool:
        return isinstance(cls, Remote) and bool(
            self._remote_peer.request("issubclass", cls, (self,))
        )


def _special(operation: str) -> Callable[..., Any]:
    def method(self: Remote, *args: Any) -> Any:
        return self._remote_peer.request(operation, self, args)

    return method


def _reflected(operation: str) -> Callable[..., Any]:
    def method(self: Remote, other: Any) -> Any:
        return self._remote_peer.request("reflected", self, (operation, other))

    return method


for _operation, _name in _SPECIAL.items():
    setattr(Remote, _name, _special(_operation))
for _operation in _REFLECTED:
    setattr(Remote, f"__r{_operation.rstrip('_')}__", _reflected(_operation))


class Peer:
    """This side of a channel.

    Args:
        descriptor: The channel's socket.
        generous: Whether the other side may do anything with this side's objects, or only call
            functions and advance iterators.
    """

    def __init__(self, descriptor: int, *, generous: bool):
        self.channel = Channel(descriptor, self.answer)
        self.lost = False
        self.names: Callable[[str], Any] | None = None
        """Looks up a global name for the other side."""
        self._allowed = tuple(_OPERATIONS) if generous else _HARMLESS
        self._generous = generous
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._exceptions: dict[str, type] = {}
        self._remotes: dict[int, Remote] = {}

    def request(
        self,
        operation: str,
        target: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Have the other side do something; raises what it raises."""
        given = list(args) + list((kwargs or {}).values())
        try:
            answer = self.channel.call(
                [operation, self._encode(target), [self._encode(a) for a in args],
                 {name: self._encode(value) for name, value in (kwargs or {}).items()}]
            )  # fmt: skip
            return self.outcome(answer, given)
        except Lost:
            self.lost = True
            raise

    def outcome(self, answer: Any, given: Sequence[Any] = ()) -> Any:
        """What an answer says: a value, or an exception, which is raised; what was printed."""
        if not isinstance(answer, dict):
            raise Lost("an answer that says nothing")
        if isinstance(printed := answer.get("printed"), str) and printed:
            sys.stdout.write(printed)
        for index, value in (answer.get("changed") or {}).items():
            # The checks are the protocol's: only what was given can have changed.
            if index.isdigit() and int(index) < len(given):
                _become(given[int(index)], self._decode(value))
        if "raised" in answer:
            raise self._exception(answer["raised"])
        return self._decode(answer.get("value"))

    def answer(self, request: Any) -> dict[str, Any]:
        """Do what the other side asks for."""
        printed = _Printed(sys.stdout)
        found: dict[str, Any] = {}
        try:
            operation, target, args, kwargs = request
            target = target if operation == "name" else self._target(target)
            args = [self._decode(value) for value in args]
            kwargs = {name: self._decode(value) for name, value in kwargs.items()}
            given = args + list(kwargs.values())
            before = [self._state(value) for value in given]
            with contextlib.redirect_stdout(printed):
                try:
                    found["value"] = self._encode(self._perform(operation, target, args, kwargs))
                finally:
                    after = [self._state(value) for value in given]
            found["changed"] = {
                str(i): state for i, state in enumerate(after) if state != before[i]
            }
        except Lost:
            raise
        except BaseException as error:
            # SystemExit too: to the test it is one failure among others.
            found["raised"] = self.describe(error)
        return found | {"printed": printed.text()}

    def describe(self, error: BaseException) -> dict[str, Any]:
        """An exception for the other side: its class and those that it derives from, its words."""
        args: list[Any] = []
        with contextlib.suppress(Exception):
            plain = all(type(arg) in (str, int, float, bool) for arg in error.args)
            args = [self._encode(arg) for arg in (error.args if plain else [str(error)])]
        return {"kinds": _kinds(type(error)), "args": args}

    def _perform(self, operation: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if operation == "call" and callable(target):
            return target(*args, **kwargs)
        if operation == "name" and self.names is not None:
            return self.names(target)
        if operation == "reflected" and self._generous:
            return _OPERATIONS[args[0]](args[1], target)
        if operation in self._allowed:
            return _OPERATIONS[operation](target, *args, **kwargs)
        raise TypeError("an object of the test is used for more than calling it")

    def _state(self, value: Any) -> Any:
        return self._encode(value) if type(value) in MUTABLE else None

    def _encode(self, value: Any) -> Any:
        return encode(value, self._reference)

    def _decode(self, message: Any) -> Any:
        return decode(message, self._object)

    def _reference(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return ["yours", value._remote_number]
        name = getattr(value, "__name__", None)
        if isinstance(name, str) and getattr(builtins, name, None) is value:
            return ["builtin", name]
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["exception", _kinds(value)]
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)  # which keeps its id from being another's
        return ["mine", self._numbers[id(value)]]

    def _object(self, reference: Any) -> Any:
        kind, what = reference
        if kind == "yours":
            return self._objects[int(what)] if int(what) >= 0 else _no_such()
        if kind == "mine":
            return self._remotes.setdefault(int(what), Remote(self, int(what)))
        if kind == "builtin":
            return getattr(builtins, what) if what in vars(builtins) else _no_such()
        return self._exception_class(what)

    def _target(self, message: Any) -> Any:
        # A test's own built-in functions are not for the program to call: exec is one of them.
        if not self._generous and message["of"][0] != "yours":
            raise TypeError("only what the test has handed over can be used")
        return self._decode(message)

    def _exception(self, said: Any) -> BaseException:
        try:
            kind = self._exception_class(said["kinds"])
            args = [self._decode(arg) for arg in said["args"]]
        except (KeyError, TypeError, ValueError) as error:
            raise Lost("an exception that is none") from error
        found = kind.__new__(kind, *args)
        found.args = tuple(args)
        return found

    def _exception_class(self, kinds: Any) -> type[BaseException]:
        """The class of the first of these names, made here unless it is Python's own."""
        names = [str(name)[:200] for name in kinds]
        own = getattr(builtins, names[0], None) if names else BaseException
        if isinstance(own, type) and issubclass(own, BaseException):
            return own
        key = " ".join(names)
        if key not in self._exceptions:
            parent = self._exception_class(names[1:])
            self._exceptions[key] = type(names[0], (parent,), {})
        return self._exceptions[key]


class _Printed(io.TextIOBase):
    """Collects what is printed, up to a bound; the rest goes where it would have gone."""

    def __init__(self, beyond: Any):
        self._parts: list[str] = []
        self._size = 0
        self._beyond = beyond

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._size + len(text) > _PRINTED:
            self._beyond.write(text)
        else:
            self._size += len(text)
            self._parts.append(text)
        return len(text)

    def text(self) -> str:
        return "".join(self._parts)


def _become(value: Any, other: Any) -> None:
    """Let a container hold what the other side has made of its copy."""
    if type(value) is not type(other) or type(value) not in MUTABLE:
        return
    value.clear()
    if isinstance(value, (dict, set)):
        value.update(other)
    else:
        value.extend(other)


def _kinds(kind: type[BaseException]) -> list[str]:
    return [base.__name__ for base in kind.__mro__ if issubclass(base, BaseException)]


def _no_such() -> NoReturn:
    raise ValueError("no such object")
