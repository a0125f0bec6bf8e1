"""Stand-ins for objects that live in the other process, and classes that stand for theirs.

A class of the other side becomes a class here: of the same name, above the stand-ins of its bases or
Python's own, with those special methods that it has. So ``type``, ``isinstance``, ``except`` and
Python's choice between an operator and its reflection work as they would in one process.
"""

import types
from collections.abc import Callable, Iterator
from typing import Any

from qsweep.tasks.sandbox.inside.wire import Disconnected

_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor",
           "lshift", "rshift", "divmod")  # fmt: skip
SPECIAL = frozenset(f"__{name}__" for name in (
    "eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "invert", "index", "getitem", "setitem",
    "delitem", "contains", "iter", "next", "len", "repr", "str", "hash", "bool", "int", "float",
    "complex", "abs", "round", "trunc", "floor", "ceil", "reversed", "format", "enter", "exit",
    "call", "bytes", "fspath", "length_hint", "aiter", "anext", "aenter", "aexit", "await",
    *_BINARY, *(f"r{name}" for name in _BINARY), *(f"i{name}" for name in _BINARY),
))  # fmt: skip
# What a stand-in has of its own beside these; all else is looked up on the other side.
_OWN = SPECIAL | frozenset(f"__{name}__" for name in (
    "class", "init", "new", "reduce", "reduce_ex", "getattribute", "setattr", "delattr", "get",
    "copy", "deepcopy", "traceback", "cause", "context", "suppress_context", "setstate",
))  # fmt: skip
# Classes whose instances hold content that C code reads past every method, and how it is had.
CONTENT_READERS: dict[type, Callable[[Any], Any]] = {
    int: int.__index__,
    float: float.__float__,
    complex: complex.__complex__,
    str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    list: lambda value: list(list.__iter__(value)),
    set: lambda value: set(set.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
}
_IMMUTABLE = (int, float, complex, str, bytes, tuple, frozenset)
# Types without a class statement, which a stand-in claims to be of.
_KINDS: tuple[type, ...] = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.GeneratorType),
    *(types.MappingProxyType, types.ModuleType, types.CodeType, map, filter, zip, enumerate),
    *(reversed, type({}.keys()), type({}.values()), type({}.items()), type(iter([]))),
)
_LOOKALIKES = {kind.__name__: kind for kind in _KINDS}


def builtin_base(kind: type) -> type | None:
    """The class of Python's own that holds an instance's content, if it is one of those above."""
    return next((base for base in kind.__mro__ if base in CONTENT_READERS), None)


def describe_class(kind: type) -> dict[str, Any]:
    """What the other side must know of a class to make one that stands for it."""
    special: list[str] = []
    without: list[str] = []
    for name in SPECIAL:
        owner = next((base for base in kind.__mro__ if name in vars(base)), object)
        own = owner in _IMMUTABLE or owner is object
        if own or (issubclass(owner, BaseException) and owner.__module__ == "builtins"):
            continue  # Python's, which works on the content
        (special if vars(owner)[name] is not None else without).append(name)
    return {
        "name": kind.__name__,
        "module": kind.__module__,
        "bases": list(kind.__bases__),
        "special": special,
        "without": without,
        "methods": [
            name for name, value in vars(kind).items() if type(value) is types.FunctionType
        ],
    }


def _is_exception(kind: type) -> bool:
    return issubclass(kind, BaseException)


def _of_python(kind: type, name: str) -> bool:
    return any(name in vars(base) for base in kind.__mro__ if type(base) is type)


class StandInClass(type):
    """The class of classes that stand for one of the other side."""

    _remote_peer: Any

    def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> Any:  # noqa: D102
        if "_remote_peer" in space or not bases:
            return super().__new__(cls, name, bases, space)
        # A class statement here derives from a class there: that is where it is made.
        peer = next(base for base in bases if isinstance(base, StandInClass))._remote_peer
        cell = space.pop("__classcell__", None)
        names = ("__module__", "__qualname__", "__doc__", "__annotations__")
        given = {name: value for name, value in space.items() if name not in names}
        found = peer.request("subclass", name, (list(bases), given))
        if cell is not None:
            cell.cell_contents = found
        return found

    def __init__(cls, *_: Any) -> None:  # noqa: D107
        pass

    def __call__(cls, /, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        return cls._remote_peer.request("call", cls, args, kwargs)

    def __getattr__(cls, name: str) -> Any:
        if name == "_remote_peer":
            raise AttributeError(name)
        return cls._remote_peer.request("getattr", cls, (name,))

    def __setattr__(cls, name: str, value: Any) -> None:
        cls._remote_peer.request("setattr", cls, (name, value))

    def __iter__(cls) -> Any:
        return cls._remote_peer.request("do", cls, ("__iter__",))

    def __len__(cls) -> Any:
        return cls._remote_peer.request("do", cls, ("__len__",))

    def __bool__(cls) -> bool:
        return True

    def __getitem__(cls, key: Any) -> Any:
        return cls._remote_peer.request("do", cls, ("__getitem__", key))

    def __contains__(cls, value: Any) -> Any:
        return cls._remote_peer.request("do", cls, ("__contains__", value))

    def __dir__(cls) -> Any:
        return cls._remote_peer.request("dir", cls)


class StandIn(metaclass=StandInClass):
    """Stands for an object of the other side: every use is a request."""

    def __getattribute__(self, name: str) -> Any:
        if name in _OWN or (isinstance(self, BaseException) and _of_python(type(self), name)):
            return object.__getattribute__(self, name)
        return type(self)._remote_peer.request("getattr", self, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            type(self)._remote_peer.request("setattr", self, (name, value))

    def __delattr__(self, name: str) -> None:
        type(self)._remote_peer.request("delattr", self, (name,))

    def __dir__(self) -> Any:
        return type(self)._remote_peer.request("dir", self)

    def __copy__(self) -> Any:
        return type(self)._remote_peer.request("copy", self)

    def __deepcopy__(self, _: Any) -> Any:
        return type(self)._remote_peer.request("deepcopy", self)

    def __reduce_ex__(self, _: Any) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")


# Python's own classes have some of these, too, and may come before in the order of bases.
_ALWAYS = {
    name: value for name, value in vars(StandIn).items() if type(value) is types.FunctionType
}


def make_class(peer: Any, description: Any, bases: list[Any]) -> type:
    """The class that stands for one of the other side, as :func:`describe_class` tells of it.

    Raises:
        Disconnected: There cannot be such a class.
    """
    # Python's own classes in C hold what a stand-in does not have, but for those that get it.
    solids = (
        b if isinstance(b, StandInClass) or _is_exception(b) else builtin_base(b) for b in bases
    )
    above = tuple(dict.fromkeys(base for base in solids if base is not None))
    if not any(isinstance(base, StandInClass) for base in above):
        above = (StandIn, *above)
    space: dict[str, Any] = {
        **_ALWAYS,
        "_remote_peer": peer,
        "__module__": str(description["module"]),
    }
    for name in map(str, description["methods"]):
        if name == "__init__" or not name.startswith("__"):
            space[name] = _Forward(name)
    space |= {name: _special(name) for name in description["special"] if name in SPECIAL}
    space |= {name: None for name in description["without"] if name in SPECIAL}
    kind = _LOOKALIKES.get(description["name"]) if description["module"] == "builtins" else None
    if kind is not None:
        space["__class__"] = property(lambda _: kind)
    if kind is types.FunctionType:
        space["__get__"] = lambda self, owner, _=None: (
            self if owner is None else types.MethodType(self, owner)
        )
    try:
        made = type.__new__(StandInClass, str(description["name"])[:200], above, space)
    except (TypeError, ValueError) as error:
        raise Disconnected("a class that cannot be") from error
    for name in space:
        if isinstance(space[name], _Forward):
            space[name].owner = made
    return made


class _Forward:
    """A method of a class of the other side, for ``super()``."""

    def __init__(self, name: str):
        self.name, self.owner = name, None

    def __get__(self, instance: Any, _: Any = None) -> Any:
        found = StandInClass.__getattr__(self.owner, self.name)  # type: ignore[arg-type]
        return found if instance is None else types.MethodType(found, instance)


def _special(name: str) -> Callable[..., Any]:
    if name == "__call__":

        def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            return type(self)._remote_peer.request("call", self, args, kwargs)

        return call

    def method(self: Any, *args: Any) -> Any:
        # A traceback is of no use elsewhere.
        given = (None if isinstance(arg, types.TracebackType) else arg for arg in args)
        return type(self)._remote_peer.request("do", self, (name, *given))

    return method


def generator(peer: Any, number: int) -> Iterator[Any]:
    """A generator that has one of the other side go on."""
    value: Any = None
    how = "send"
    while True:
        try:
            item = peer.ask(number, "method", (how, value))
        except StopIteration as end:
            return end.value
        try:
            value, how = (yield item), "send"
        except GeneratorExit:
            peer.ask(number, "method", ("close",))
            raise
        except BaseException as error:
            value, how = error, "throw"


async def coroutine(peer: Any, number: int) -> Any:
    """A coroutine that has one of the other side run to its end."""
    return peer.ask(number, "await", ())


def subclass(name: str, bases: list[Any], space: dict[str, Any]) -> type:
    """A class that a test derives from one of the program's."""
    body = {key: bindable(value) for key, value in space.items()}
    return types.new_class(name, tuple(bases), {}, lambda found: found.update(body))


def bindable(value: Any) -> Any:
    """A function of the other side as one that becomes a method of a class here."""
    if not (isinstance(type(value), StandInClass) and isinstance(value, types.FunctionType)):
        return value

    def function(*args: Any, **kwargs: Any) -> Any:
        return value(*args, **kwargs)

    return function
