"""The process that runs a program's test. The program itself never runs in it."""

import builtins
import contextlib
import importlib
import os
import sys
from typing import Any

from qsweep.tasks.sandbox.inside.capture import print_last_frames
from qsweep.tasks.sandbox.inside.peer import Peer
from qsweep.tasks.sandbox.inside.wire import Disconnected

_ONLY_AST = 0x400  # ast.PyCF_ONLY_AST, without a module that no test needs
# Said where the program's process has ended: how, is known outside.
DISCONNECTED = "?"


class _Builtins(dict[str, Any]):
    """The built-in names; below them the program's, for the body of a class looks nowhere else."""

    def __init__(self, names: "Names"):
        super().__init__(vars(builtins))
        self._names = names

    def __missing__(self, name: str) -> Any:
        return self._names[name]


class Names(dict[str, Any]):
    """The test's global names; those that it does not define are the program's."""

    def __init__(self, peer: Peer, test: str):
        super().__init__(__name__="__main__")
        used = _used(compile(test, "test.py", "exec", _ONLY_AST))
        # A test of some function of the program's means Python's own abs, not one that agrees with
        # it always; a test of nothing else must mean the program's.
        self._pythons = used if used - vars(builtins).keys() else set()
        self["__builtins__"] = _Builtins(self)
        self._peer = peer

    def __missing__(self, name: str) -> Any:
        if name.startswith("__") or (name in self._pythons and name in vars(builtins)):
            raise KeyError(name)
        try:
            kind, value = self._peer.request("name", name)
        except KeyError:  # the program has none either
            if name in vars(builtins):
                self[name] = getattr(builtins, name)
            raise
        except (TypeError, ValueError) as error:
            raise Disconnected("a name that has no value") from error
        if kind != "module":
            return value
        if value != name or name not in sys.stdlib_module_names:
            raise KeyError(name)
        return importlib.import_module(name)


def _used(tree: Any) -> set[str]:
    """The names that a test uses and does not define."""
    loaded: set[str] = set()
    defined: set[str] = set()
    left: list[Any] = [tree]
    while left:
        node = left.pop()
        kind = type(node).__name__
        if kind == "Name":
            (loaded if type(node.ctx).__name__ == "Load" else defined).add(node.id)
        elif kind in ("FunctionDef", "AsyncFunctionDef", "ClassDef"):
            defined.add(node.name)
        elif kind == "alias":
            defined.add((node.asname or node.name).partition(".")[0])
        elif kind == "arg":
            defined.add(node.arg)
        elif kind == "ExceptHandler" and node.name:
            defined.add(node.name)
        for field in getattr(node, "_fields", ()):
            value = getattr(node, field, None)
            left += value if isinstance(value, list) else [value]
    return loaded - defined


def main(order: dict[str, Any]) -> None:
    """Run ``order["test"]``; only one that ends on its own, without an exception, earns the token."""
    own = os.getpid()
    peer = Peer(order["channel"], unrestricted=False)
    try:
        peer.outcome(peer.channel.receive_first())
        exec(compile(order["test"], "test.py", "exec"), Names(peer, order["test"]))  # noqa: S102
        # Whoever catches every exception has not seen the program come through.
        words = DISCONNECTED if peer.lost else order["token"]
    except Disconnected:
        words = DISCONNECTED
    except BaseException as error:
        with contextlib.suppress(BaseException):
            print_last_frames()
        line = next(iter(str(error).splitlines()), "")
        words = f"!{type(error).__name__}: {line}"[:301]
    if os.getpid() == own:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os.write(order["verdict"], words.encode(errors="replace"))
    os._exit(0)
