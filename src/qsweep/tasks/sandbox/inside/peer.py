"""One side's objects, and requests to use those of the other.

What is no plain data stays with its owner; the other side holds a stand-in, whose every use is a
request. So a test can work with a program's functions, classes, instances and generators as if they
were its own, though they live in another process.
"""

import builtins
import contextlib
import copy
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from qsweep.tasks.sandbox.inside.capture import PrintCapture
from qsweep.tasks.sandbox.inside.library import (
    arguments,
    is_pythons_exception,
    library_class,
    make_error,
)
from qsweep.tasks.sandbox.inside.permissions import check_permitted
from qsweep.tasks.sandbox.inside.standin import (
    CONTENT_READERS,
    bindable,
    builtin_base,
    coroutine,
    describe_class,
    generator,
    make_class,
    subclass,
)
from qsweep.tasks.sandbox.inside.wire import (
    PLAIN_CLASSES,
    Channel,
    Disconnected,
    SharedContainers,
    contents,
    decode,
    encode,
    fill,
    is_late,
)

# What a class itself is asked for in another way than by its own special methods.
_OF_CLASSES: dict[str, Callable[..., Any]] = {
    "__iter__": iter,
    "__len__": len,
    "__getitem__": lambda kind, key: kind[key],
    "__contains__": lambda kind, value: value in kind,
}


class Peer:
    """This side of a channel.

    Args:
        descriptor: The channel's socket.
        unrestricted: Whether the other side may do anything with this side's objects. Else it may call
            functions, advance iterators, and use what the test's own classes define.
    """

    def __init__(self, descriptor: int, *, unrestricted: bool):
        self.channel = Channel(descriptor, self.answer)
        self.lost = False
        self.names: Callable[[str], Any] | None = None
        """Looks up a global name for the other side."""
        self._unrestricted = unrestricted
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._theirs: dict[int, Any] = {}
        self._their_numbers: dict[int, int] = {}
        self._memory = SharedContainers(int(unrestricted))
        self._dropped: list[int] = []
        self._depth = 0
        self._loop: Any = None

    def request(
        self,
        operation: str,
        target: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Have the other side do something; raises what it raises.

        Args:
            operation: What: see :meth:`_perform`.
            target: The object that it is done to.
            args: Arguments, of which plain data cross by value.
            kwargs: Arguments by name.
        """
        return self._ask(operation, lambda: self._encode(target), args, kwargs or {})

    def ask(self, number: int, operation: str, args: Sequence[Any]) -> Any:
        """As :meth:`request`, of an object of the other side by its number."""
        target = {"is": "reference", "of": ["yours", number]}
        return self._ask(operation, lambda: target, args, {})

    def input(self, *prompt: Any) -> Any:
        """The built-in function on the other side, where a test may have put something else."""
        return self._ask("input", lambda: None, prompt, {})

    def _ask(
        self,
        operation: str,
        target: Callable[[], Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            with self.channel.turn, self._exchange():
                message = self._outgoing(
                    lambda: [
                        operation,
                        target(),
                        [self._encode(arg) for arg in args],
                        {name: self._encode(value) for name, value in kwargs.items()},
                    ]
                )
                return self.outcome(self.channel.call(message))
        except Disconnected:
            self.lost = True
            raise

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        # Between two exchanges of the test's, nobody is in the middle of anything.
        if self._depth == 0 and not self._unrestricted:
            self._dropped = self._memory.excess()
            self._memory.forget(self._dropped)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def _outgoing(self, encoded: Callable[[], Any]) -> dict[str, Any]:
        # A message, behind what has changed in the containers that both sides know.
        before = len(self._memory.values)
        try:
            changed = [
                [n, contents(self._memory.values[n], self._reference, self._memory)]
                for n in self._memory.changed()
            ]
            dropped, self._dropped = self._dropped, []
            return {"dropped": dropped, "changed": changed, "of": encoded()}
        except BaseException:
            # Never sent: the other side does not know them.
            self._memory.forget(list(self._memory.values)[before:])
            raise

    def _incoming(self, message: dict[str, Any]) -> Any:
        try:
            self._memory.forget(message.get("dropped", ()))
            for number, content in message["changed"]:
                fill(self._memory.values[number], content, self._object, self._memory)
            return message["of"]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise Disconnected("a change of nothing") from error

    def outcome(self, answer: Any) -> Any:
        """What an answer says: a value, or an exception, which is raised; what was printed."""
        if not isinstance(answer, dict):
            raise Disconnected("an answer that says nothing")
        if isinstance(printed := answer.get("printed"), str) and printed:
            sys.stdout.write(printed)
        what = self._decode(self._incoming(answer))
        if "raised" not in answer:
            return what
        raise what if isinstance(what, BaseException) else Disconnected("an exception that is none")

    def answer(self, request: Any) -> dict[str, Any]:
        """Do what the other side asks for."""
        printed = PrintCapture(sys.stdout)
        try:
            operation, target, args, kwargs = self._incoming(request)
            target = target if operation in ("name", "input") else self._target(target)
            args = [self._decode(value) for value in args]
            kwargs = {name: self._decode(value) for name, value in kwargs.items()}
            with contextlib.redirect_stdout(printed):
                value = self._perform(operation, target, args, kwargs)
            found = self._outgoing(lambda: self._encode(value))
        except Disconnected:
            raise
        except BaseException as error:
            # SystemExit too: to the test it is one failure among others.
            found = self.describe(error)
        return found | {"printed": printed.text()}

    def describe(self, error: BaseException) -> dict[str, Any]:
        """An exception for the other side, as an answer."""
        try:
            return self._outgoing(lambda: self._encode(error)) | {"raised": True}
        except Exception:
            words = f"{type(error).__name__}, which cannot be told of"
            return {"changed": [], "of": self._encode(RuntimeError(words)), "raised": True}

    def _perform(self, operation: str, target: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if operation == "name" and self.names is not None:
            return self.names(target)
        if operation == "input":
            return builtins.input(*args)
        if operation == "describe" and isinstance(target, type):
            return describe_class(target)
        if not self._unrestricted:
            check_permitted(operation, target, args)
        if operation == "call":
            return target(*args, **kwargs)
        if operation == "do":
            name, *given = args
            if isinstance(target, type) and name in _OF_CLASSES:
                return _OF_CLASSES[name](target, *given)
            return getattr(type(target), name)(target, *given)
        if operation == "method":
            return getattr(target, args[0])(*args[1:])
        if operation == "await":
            return self._run(target)
        if operation == "subclass":
            return subclass(target, *args)
        if operation == "setattr" and isinstance(target, type):
            args = [args[0], bindable(args[1])]
        return _ATTRIBUTES[operation](target, *args)

    def _run(self, awaitable: Any) -> Any:
        import asyncio

        async def wait() -> Any:
            return await awaitable

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(wait())

    def _encode(self, value: Any) -> Any:
        return encode(value, self._reference, self._memory)

    def _decode(self, message: Any) -> Any:
        return decode(message, self._object, self._memory)

    def _reference(self, value: Any) -> Any:
        if id(value) in self._their_numbers:
            return ["yours", self._their_numbers[id(value)]]
        # A program's function is run by the program, exec too: the test would run it on a text of
        # the program's choice.
        named = isinstance(value, type) or not self._unrestricted
        name = getattr(value, "__name__", None) if named else None
        if isinstance(name, str) and getattr(builtins, name, None) is value:
            return ["builtin", name]
        if isinstance(value, type):
            if value in PLAIN_CLASSES or is_late(value) or is_pythons_exception(value):
                return ["library", value.__module__, value.__name__]
            return ["class", self._number(value)]
        number, kind = self._number(value), type(value)
        if isinstance(value, BaseException):
            args = arguments(value)
            cause = self._encode(value.__cause__)
            return ["error", number, self._encode(kind), self._encode(args), cause]
        for word, there in (("generator", types.GeneratorType), ("coroutine", _Awaitable)):
            if isinstance(value, there):
                return [word, number]
        base = builtin_base(kind)
        content = None if base is None else self._encode(CONTENT_READERS[base](value))
        return ["mine", number, self._number(kind), content]

    def _number(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)  # which keeps its id from being another's
        return self._numbers[id(value)]

    def _object(self, reference: Any) -> Any:
        kind, what, *more = reference
        if kind == "yours":
            return self._objects[int(what)] if int(what) >= 0 else _no_such()
        if kind == "builtin":
            found = vars(builtins).get(what)
            return found if self._unrestricted or isinstance(found, type) else _no_such()
        if kind == "library":
            return library_class(what, more[0])
        if int(what) not in self._theirs:
            made = self._stand_in(kind, int(what), more)
            self._theirs[int(what)] = made
            self._their_numbers[id(made)] = int(what)
        return self._theirs[int(what)]

    def _stand_in(self, kind: str, number: int, more: list[Any]) -> Any:
        if kind == "class":
            return self._class(number)
        if kind == "generator":
            return generator(self, number)
        if kind == "coroutine":
            return coroutine(self, number)
        if kind == "error":
            return make_error(self._decode(more[0]), self._decode(more[1]), self._decode(more[2]))
        made = self._object(["class", more[0]])
        base = builtin_base(made)
        if base is None:
            return object.__new__(made)
        content = self._decode(more[1])
        if type(content) is not base:
            _no_such()
        found = base.__new__(made, *(() if base in (list, dict, set) else (content,)))
        if base in (list, dict, set):
            getattr(base, "extend" if base is list else "update")(found, content)
        return found

    def _class(self, number: int) -> type:
        try:
            description = self.ask(number, "describe", ())
            return make_class(self, description, [_class(base) for base in description["bases"]])
        except Disconnected:
            raise
        except BaseException as error:
            raise Disconnected("a class that cannot be told of") from error

    def _target(self, message: Any) -> Any:
        # A test's own built-in functions are not for the program to call: exec is one of them.
        if not self._unrestricted and message["of"][0] != "yours":
            raise TypeError("only what the test has handed over can be used")
        return self._decode(message)


_ATTRIBUTES: dict[str, Callable[..., Any]] = {
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "dir": dir,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


class _MeansAwaitable(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return hasattr(type(value), "__await__")


class _Awaitable(metaclass=_MeansAwaitable):
    """Whatever can be awaited."""


def _class(value: Any) -> Any:
    return value if isinstance(value, type) else _no_such()


def _no_such() -> NoReturn:
    raise ValueError("no such object")
