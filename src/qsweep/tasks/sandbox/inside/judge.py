"""The process that runs a program's test. The program itself never runs in it."""

import builtins
import contextlib
import importlib
import os
import sys
import traceback
from typing import Any

from qsweep.tasks.sandbox.inside.peer import Peer
from qsweep.tasks.sandbox.inside.wire import Lost

# Said where the program's process has ended: how, is known outside.
LOST = "?"


class Names(dict[str, Any]):
    """The test's global names; those that it does not define are the program's."""

    def __init__(self, peer: Peer):
        super().__init__(__name__="__main__", __builtins__=builtins)
        self._peer = peer

    def __missing__(self, name: str) -> Any:
        if name.startswith("__"):
            raise KeyError(name)
        try:
            kind, value = self._peer.request("name", name)
        except KeyError:  # the program has none either
            if name in vars(builtins):
                self[name] = getattr(builtins, name)
            raise
        except (TypeError, ValueError) as error:
            raise Lost("a name that has no value") from error
        if kind != "module":
            return value
        if str(value).partition(".")[0] not in sys.stdlib_module_names:
            raise KeyError(name)
        return importlib.import_module(value)


def main(order: dict[str, Any]) -> None:
    """Run ``order["test"]``; only one that ends on its own, without an exception, earns the token."""
    own = os.getpid()
    peer = Peer(order["channel"], generous=False)
    try:
        peer.outcome(peer.channel.hear())
        exec(compile(order["test"], "test.py", "exec"), Names(peer))  # noqa: S102
        # Whoever catches every exception has not seen the program come through.
        words = LOST if peer.lost else order["token"]
    except Lost:
        words = LOST
    except BaseException as error:
        with contextlib.suppress(BaseException):
            traceback.print_exc(limit=-3)
        line = next(iter(str(error).splitlines()), "")
        words = f"!{type(error).__name__}: {line}"[:301]
    if os.getpid() == own:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os.write(order["verdict"], words.encode(errors="replace"))
    os._exit(0)
