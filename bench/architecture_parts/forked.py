"""Processes that are copies of this one instead of new interpreters: importing torch takes seconds.

Some of qsweep's steps start a Python of their own, since a library may end the process or brings
modules that clash. Here they are forked from a process that has imported what is slow.
"""

import contextlib
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


def fork(work: Callable[[], Any], log: Path) -> int:
    """Start ``work`` in a copy of this process, with what it prints in ``log``; its process id."""
    sys.stdout.flush(), sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        if torch := sys.modules.get("torch"):
            # A copy's pool of threads is made anew by who asks first, and two at once get none.
            torch.set_num_threads(torch.get_num_threads())
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - nothing of the copy may go on as the original
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def forked_interpreters() -> Iterator[None]:
    """``subprocess.run`` of this interpreter with a script or module forks instead."""
    original = subprocess.run

    def run(command: Sequence[str], *args: Any, **options: Any) -> Any:
        if isinstance(command, str) or list(command[:2]) != [sys.executable, "-P"]:
            return original(command, *args, **options)
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            log.touch()
            pid = fork(lambda: _interpret([str(part) for part in command[2:]]), log)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            output = log.read_text(errors="replace")
        return subprocess.CompletedProcess(command, code, output, None)

    subprocess.run = run
    try:
        yield
    finally:
        subprocess.run = original


def _interpret(arguments: list[str]) -> None:
    # What the process has of this package may not be the script's own.
    for name in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
        del sys.modules[name]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.modules.pop(arguments[1], None)
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
