"""Programs in a sandbox: run in one process, judged in another, neither of which is qsweep's."""

import contextlib
import os
import random
import secrets
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qsweep.base.scratch import ScratchFolder
from qsweep.tasks.sandbox import cgroup, isolation
from qsweep.tasks.sandbox.inside.confine import can_filter
from qsweep.tasks.sandbox.inside.judge import DISCONNECTED
from qsweep.tasks.sandbox.process import Limits, SandboxedProcess, resource_limits, start, watch
from qsweep.tasks.task import TaskUnavailable

# Users that no system gives to anybody: of 2^31 numbers, those that not even systemd hands out.
_FIRST_USER, _USERS = 0x70000000, 1 << 24
# What a control group may hold beside a program and its scratch directory, bytes: the sandbox's own.
_OVERHEAD = 32 << 20


@dataclass(frozen=True)
class ProgramResult:
    """Whether a program came through its test without an exception, else why not."""

    passed: bool
    reason: str
    output: str = ""


@dataclass(frozen=True)
class Sandbox:
    """A way to cut a program off. ``name``: bubblewrap, unshare or none."""

    name: str

    def command(self, scratch_bytes: int) -> list[str] | None:
        """The command line of an isolated interpreter; None where it cannot be had."""
        if self.name == "none":
            return isolation.interpreter()
        root = os.geteuid() == 0
        user = _FIRST_USER + random.randrange(_USERS) if root else None  # noqa: S311
        make = {"bubblewrap": isolation.bubblewrap, "unshare": isolation.unshare}[self.name]
        prefix = make(user, scratch_bytes)
        return None if prefix is None else [*prefix, *isolation.interpreter()]


def find_sandbox(*, unsafe: bool = False) -> Sandbox:
    """The first sandbox that works here.

    Args:
        unsafe: Where there is none, run programs without any.

    Raises:
        TaskUnavailable: There is none; the line says what to install.
    """
    tried = []
    for name in ("bubblewrap", "unshare"):
        reason = _probe(name)
        if reason is None:
            _tell_of_memory()
            return Sandbox(name)
        tried.append(f"{name}: {reason}")
    if unsafe:
        return Sandbox("none")
    raise TaskUnavailable(
        "running generated programs needs a sandbox, and none works here "
        f"({'; '.join(tried)}); install bubblewrap, or set eval.unsafe_code=true to run them "
        "unprotected"
    )


def run_program(
    sandbox: Sandbox, program: str, limits: Limits | None = None, *, test: str = ""
) -> ProgramResult:
    """Run one Python program to its end, then its test; up to the first limit that either meets.

    The test runs in a process of its own, with the program's global names as if it stood below it.
    Nothing that the program does in its process makes a test pass, but for what it returns. Without
    a test it passes where it comes to its end, and has only its own word for that.

    Args:
        sandbox: How both are cut off.
        program: Python's text.
        limits: For either process.
        test: Python's text, which raises where the program is wrong.
    """
    limits = limits or Limits()
    command = sandbox.command(limits.scratch_bytes)
    if command is None:
        return ProgramResult(False, f"{sandbox.name} is not installed")
    token = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        lent = contextlib.ExitStack()
        stack.enter_context(lent)  # ends of pipes that only the processes shall have
        verdict, verdict_in = _pipe(stack, lent)
        output, output_in = _pipe(stack, lent)
        ends = [lent.enter_context(end).fileno() for end in socket.socketpair()]
        roles: list[tuple[dict[str, Any], list[int]]] = [
            ({"role": "candidate", "program": program, "channel": ends[0]}, [ends[0]]),
            (
                {"role": "judge", "test": test, "channel": ends[1], "verdict": verdict_in}
                | {"token": token},
                [ends[1], verdict_in],
            ),
        ]
        processes: list[SandboxedProcess] = []
        try:
            for order, descriptors in roles:
                group = stack.enter_context(_group(sandbox, limits))
                common = _common(sandbox, limits, stack)
                process = start(command, order | common, group, output_in, descriptors)
                stack.callback(process.end)
                processes.append(process)
        except OSError as error:
            return ProgramResult(False, f"cannot start: {error.strerror}")
        lent.close()
        printed, outputs, stopped = watch(processes, output, verdict, limits)
        text = printed.decode(errors="replace")
        if stopped:
            return ProgramResult(False, stopped, text)
        if outputs == token.encode():
            return ProgramResult(True, "passed", text)
        if outputs.startswith(b"!"):
            return ProgramResult(False, outputs[1:].decode(errors="replace"), text)
        # The test says that the program is gone, or is gone itself.
        gone = processes[0] if outputs == DISCONNECTED.encode() else processes[1]
        gone.settle()
        gone.end()
        return ProgramResult(False, gone.ending(limits), text)


def run_programs(
    sandbox: Sandbox,
    programs: Sequence[tuple[str, str]],
    limits: Limits | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> list[ProgramResult]:
    """Run many programs, as many at a time as there are cores.

    Args:
        sandbox: How they are cut off.
        programs: Pairs of program and test, see :func:`run_program`.
        limits: For each.
        progress: Told the share that is done.

    Returns:
        Outcomes in the programs' order.
    """
    results = []

    def run(pair: tuple[str, str]) -> ProgramResult:
        return run_program(sandbox, pair[0], limits, test=pair[1])

    with ThreadPoolExecutor(_cores()) as pool:
        for result in pool.map(run, programs):
            results.append(result)
            progress(len(results) / len(programs))
    return results


def _pipe(stack: contextlib.ExitStack, lent: contextlib.ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    stack.callback(os.close, read)
    lent.callback(os.close, write)
    return read, write


def _group(
    sandbox: Sandbox, limits: Limits
) -> "contextlib.AbstractContextManager[cgroup.ControlGroup | None]":
    if sandbox.name == "none":
        return contextlib.nullcontext()
    return cgroup.limited(limits.memory_bytes + limits.scratch_bytes + _OVERHEAD)


def _common(sandbox: Sandbox, limits: Limits, stack: contextlib.ExitStack) -> dict[str, Any]:
    confined = sandbox.name != "none"
    scratch = isolation.SCRATCH
    if not confined:
        scratch = stack.enter_context(ScratchFolder())
    return {
        "scratch": scratch,
        "limits": resource_limits(limits, confined=confined),
        "filter": confined,
    }


def memory_bounds() -> tuple[str, ...]:
    """What bounds the memory of a program here, beside adding up what its processes hold."""
    found = {"a control group": cgroup.available(), "a filter of system calls": can_filter()}
    return tuple(name for name, there in found.items() if there)


@lru_cache(maxsize=1)
def _tell_of_memory() -> None:
    if not memory_bounds():
        print(
            "note: the sandbox cannot bound all the memory of a generated program: no control "
            "group can be made, and system calls cannot be filtered on this kind of machine",
            file=sys.stderr,
            flush=True,
        )


@lru_cache
def _probe(name: str) -> str | None:
    """None if a sandbox of this kind works, else why not."""
    sandbox = Sandbox(name)
    if sandbox.command(1 << 20) is None:
        return "not installed"
    outcome = run_program(sandbox, "import math", Limits(wall_s=20))
    if outcome.passed:
        return None
    lines = outcome.output.strip().splitlines() or [outcome.reason]
    return lines[-1][:200]


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
