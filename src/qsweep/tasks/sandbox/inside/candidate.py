"""The process that runs a program, and lends what the program defines to the one that judges it."""

import builtins
import contextlib
import os
import sys
from typing import Any

from qsweep.tasks.sandbox.inside.capture import print_last_frames
from qsweep.tasks.sandbox.inside.peer import Peer
from qsweep.tasks.sandbox.inside.wire import Disconnected


def main(order: dict[str, Any]) -> None:
    """Run ``order["program"]``; if it came through, serve its names until nobody asks any more.

    The outcome is decided elsewhere: nothing that the program can reach here says that it passed.
    """
    own = os.getpid()
    peer = Peer(order["channel"], unrestricted=True)
    space: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(order["program"], "program.py", "exec"), space)  # noqa: S102 - a sandbox's point
    except BaseException as error:  # SystemExit too: it did not come to its end
        if os.getpid() == own:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                print_last_frames()
            with contextlib.suppress(Disconnected):
                peer.channel.send_first(peer.describe(error))
        os._exit(1)
    if os.getpid() == own:  # a fork of it has nothing to lend
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        builtins.input = peer.input  # type: ignore[assignment]
        peer.names = lambda name: _lend(name, space[name])
        with contextlib.suppress(Disconnected):
            peer.channel.send_first({"changed": [], "of": None})
            peer.channel.serve_for_ever()
    # Whatever threads and exit handlers the program left have no say.
    os._exit(0)


def _lend(name: str, value: Any) -> tuple[str, Any]:
    # Each process has modules of its own. One under another name is an object like others: the test
    # would call its functions in place of the program's.
    same = isinstance(value, type(sys)) and value.__name__ == name
    return ("module", name) if same else ("value", value)
