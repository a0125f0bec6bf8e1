"""What happens inside a job's process, between the fork and its end."""

import contextlib
import faulthandler
import importlib
import io
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.base.secrets import RedactingStream
from qsweep.launch import tree
from qsweep.launch.reasons import OUT_OF_MEMORY, explain

# Reports of one step closer together than this are dropped: nobody can read them.
_REPORT_EVERY_S = 0.1


def run(request: int, reply: int, progress: int, server: int) -> NoReturn:
    """Do one job and end the process.

    Args:
        request: descriptor of a file with the job as JSON.
        reply: descriptor of an empty file; gets the outcome as JSON.
        progress: descriptor of a socket that takes reports of progress.
        server: process id of the fork server, without which the job has no reason to live.
    """
    code = 1
    try:
        os.setsid()
        tree.die_with_parent()
        if os.getppid() != server:
            os._exit(1)
        outcome = _run_target(request, socket.socket(fileno=progress))
        text = json.dumps(outcome).encode()
        with open(reply, "wb", closefd=False) as file:
            file.write(text)
        code = 0 if "result" in outcome else 1
    except MemoryError:
        code = OUT_OF_MEMORY
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        # No tear-down: libraries' exit handlers and CUDA's have been seen to hang and to crash, and
        # the fork server kills whatever is left.
        os._exit(code)


def _run_target(request: int, progress: socket.socket) -> dict[str, Any]:
    try:
        with open(request, "rb") as file:
            order = json.load(file)
        _set_up_process(order)
        result = _function(order["target"])(order["payload"], _reporter(progress))
        return {"result": _checked(result, order["target"])}
    except IncompatibleTrial as error:
        print(f"skipped: {error}", file=sys.stderr)
        return {"status": "skipped", "reason": explain(error)}
    except BaseException as error:
        with contextlib.suppress(OSError):  # the log's disk may be what is full
            traceback.print_exc()
        reason = explain(error)
        # What the frames hold may be most of the memory, and telling of it needs some.
        traceback.clear_frames(error.__traceback__)
        return {"status": "failed", "reason": reason}


def _set_up_process(order: dict[str, Any]) -> None:
    """Make the process what the launching one would have started by itself."""
    log = Path(order["log"])
    log.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    for source, targets in (
        (os.open(os.devnull, os.O_RDONLY), (0,)),
        (os.open(log, flags, 0o644), (1, 2)),
    ):
        for target in targets:
            os.dup2(source, target)
        os.close(source)
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, _text_stream(number))
    faulthandler.enable(sys.stderr)
    os.chdir(order["cwd"])
    sys.path[:] = order["sys_path"]
    os.environ.clear()
    os.environ.update(order["environment"])
    tree.set_process_name(os.environ[tree.MARK])
    if order["threads"]:
        _limit_threads(order["threads"])


def _text_stream(descriptor: int) -> TextIO:
    return RedactingStream(
        io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False)),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


def _limit_threads(count: int) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    if "torch" in sys.modules:  # has read the variables when it was imported
        sys.modules["torch"].set_num_threads(count)


def _function(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _checked(result: Any, target: str) -> dict[str, Any]:
    if not isinstance(result, dict):
        raise ConfigError(f"{target} returned {type(result).__name__} instead of a dict")
    try:
        json.dumps(result)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{target} returned what is not JSON: {error}") from error
    return result


def _reporter(progress: socket.socket) -> Callable[..., None]:
    from time import monotonic

    last_step: str | None = None
    last_time = 0.0

    def report(step: str, share: float | None = None) -> None:
        nonlocal last_step, last_time
        now = monotonic()
        ends = share is not None and share >= 1
        if step == last_step and not ends and now - last_time < _REPORT_EVERY_S:
            return
        last_step, last_time = step, now
        message = json.dumps([str(step)[:200], None if share is None else float(share)])
        # A reader who is busy misses a report; the job never waits for it.
        with contextlib.suppress(OSError):
            progress.send(message.encode(), socket.MSG_DONTWAIT)

    return report
