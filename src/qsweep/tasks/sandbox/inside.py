"""What runs inside a sandbox: limits itself, then executes one program and says if it came through.

Handed to the sandboxed interpreter as text, so it imports nothing of qsweep. Its standard input is a
JSON object: ``program``, ``token``, ``verdict`` (a file descriptor) and ``limits``.
"""

import contextlib
import json
import os
import resource
import sys
import traceback


def main() -> None:
    """Run the program; only one that ends on its own, without an exception, earns the token."""
    order = json.load(sys.stdin)
    limits, verdict, token = order["limits"], order["verdict"], order["token"].encode()
    # A program that reads its input finds none, and not this order either.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    os.chdir(order["scratch"])
    own = os.getpid()
    try:
        compiled = compile(order["program"], "program.py", "exec")
        exec(compiled, {"__name__": "__main__"})  # noqa: S102 - the point of a sandbox
    except BaseException as error:  # SystemExit too: the test was not passed
        if os.getpid() != own:
            os._exit(1)
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            traceback.print_exc(limit=-3)
        line = next(iter(str(error).splitlines()), "")
        words = f"{type(error).__name__}: {line}"[:300]
        os.write(verdict, f"!{words}".encode(errors="replace"))
        os._exit(1)
    if os.getpid() == own:  # a fork of it has no say
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os.write(verdict, token)
    # Whatever threads and exit handlers the program left shall not undo its verdict.
    os._exit(0)


main()
