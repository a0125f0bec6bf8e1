"""Programs in a sandbox: found, started, watched and killed from outside it."""

import contextlib
import json
import os
import platform
import random
import secrets
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

from qsweep.scratch import ScratchFolder
from qsweep.tasks.sandbox import usage, walls
from qsweep.tasks.task import TaskUnavailable

# Users that no system gives to anybody: of 2^31 numbers, those that not even systemd hands out.
_FIRST_USER, _USERS = 0x70000000, 1 << 24
# How often the memory of all processes is added up: what a core can fill meanwhile is 0.1 GB or so.
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        cpu_s: Processor seconds of each of its processes.
        wall_s: Seconds until it is killed with all that it started.
        memory_mb: What all its processes may hold together, and the address space of each; what
            it may keep in its scratch directory is an eighth of that.
        processes: How many it may have at a time, threads included.
        output_bytes: What it may print before it is killed.
    """

    cpu_s: int = 10
    wall_s: float = 15.0
    memory_mb: int = 512
    processes: int = 8
    output_bytes: int = 65536


@dataclass(frozen=True)
class Outcome:
    """Whether a program ran to its end without an exception, else why not."""

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
            return walls.unprotected(walls.interpreter())
        root = os.geteuid() == 0
        user = _FIRST_USER + random.randrange(_USERS) if root else None  # noqa: S311
        make = {"bubblewrap": walls.bubblewrap, "unshare": walls.unshare}[self.name]
        prefix = make(user, scratch_bytes)
        return None if prefix is None else [*prefix, *walls.interpreter()]


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
            return Sandbox(name)
        tried.append(f"{name}: {reason}")
    if unsafe:
        return Sandbox("none")
    raise TaskUnavailable(
        "running generated programs needs a sandbox, and none works here "
        f"({'; '.join(tried)}); install bubblewrap, or set eval.unsafe_code=true to run them "
        "unprotected"
    )


def run_program(sandbox: Sandbox, program: str, limits: Limits | None = None) -> Outcome:
    """Run one Python program to its end, or to the first limit that it meets."""
    limits = limits or Limits()
    scratch = limits.memory_mb * (1 << 17)
    command = sandbox.command(scratch)
    if command is None:
        return Outcome(False, f"{sandbox.name} is not installed")
    token = secrets.token_hex(16)
    verdict_r, verdict_w = os.pipe()
    with tempfile.TemporaryFile() as order, contextlib.ExitStack() as stack:
        stack.callback(os.close, verdict_r)
        scratch_dir = walls.SCRATCH
        if sandbox.name == "none":
            scratch_dir = stack.enter_context(ScratchFolder())
        order.write(
            json.dumps(
                {
                    "program": program,
                    "token": token,
                    "verdict": verdict_w,
                    "scratch": scratch_dir,
                    "limits": _rlimits(limits, scratch, confined=sandbox.name != "none"),
                }
            ).encode()
        )
        order.seek(0)
        try:
            process = subprocess.Popen(  # noqa: S603
                command,
                stdin=order,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(verdict_w,),
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            os.close(verdict_w)
            return Outcome(False, f"cannot start: {error.strerror}")
        os.close(verdict_w)
        output, verdict, stopped = _watch(process, verdict_r, limits)
    text = output.decode(errors="replace")
    if stopped:
        return Outcome(False, stopped, text)
    if verdict == token.encode():
        return Outcome(True, "passed", text)
    if verdict.startswith(b"!"):
        return Outcome(False, verdict[1:].decode(errors="replace"), text)
    return Outcome(False, _ending(process.returncode), text)


def run_programs(
    sandbox: Sandbox,
    programs: Sequence[str],
    limits: Limits | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> list[Outcome]:
    """Run many programs, as many at a time as there are cores. Outcomes in the programs' order."""
    done = 0
    outcomes = []
    with ThreadPoolExecutor(_cores()) as pool:
        for outcome in pool.map(lambda program: run_program(sandbox, program, limits), programs):
            outcomes.append(outcome)
            done += 1
            progress(done / len(programs))
    return outcomes


def _watch(
    process: "subprocess.Popen[bytes]", verdict: int, limits: Limits
) -> tuple[bytes, bytes, str]:
    """Read until both pipes end or a limit is met: output, verdict, and which limit it was."""
    assert process.stdout is not None
    deadline = time.monotonic() + limits.wall_s
    look = time.monotonic() + _LOOK_EVERY_S
    read = {process.stdout.fileno(): bytearray(), verdict: bytearray()}
    stopped = ""
    try:
        with selectors.DefaultSelector() as selector:
            for descriptor in read:
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map() and not stopped:
                now = time.monotonic()
                if now >= deadline:
                    stopped = f"timed out after {limits.wall_s:g} s"
                if now >= look:
                    look = now + _LOOK_EVERY_S
                    if usage.holds_more(process.pid, limits.memory_mb << 20):
                        stopped = f"held more than {limits.memory_mb} MB of memory"
                for key, _ in selector.select(max(min(deadline, look) - now, 0)):
                    chunk = os.read(key.fd, 65536)
                    if not chunk:
                        selector.unregister(key.fd)
                    read[key.fd] += chunk
                    if len(read[key.fd]) > limits.output_bytes:
                        stopped = f"printed more than {limits.output_bytes} bytes"
                        break
    finally:
        # The group, and with the first process of its own tree all that it ever started.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    output, said = (bytes(found[: limits.output_bytes]) for found in read.values())
    return output, said, stopped


def _rlimits(limits: Limits, scratch: int, *, confined: bool) -> dict[str, int]:
    found = {
        "RLIMIT_CPU": limits.cpu_s,
        "RLIMIT_AS": limits.memory_mb << 20,
        "RLIMIT_FSIZE": scratch,
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": 64,
    }
    if confined:
        # The kernel counts by user: a fresh one for root's programs, and from Linux 5.14 on each
        # user namespace by itself. Before, all that the user runs already counts too.
        found["RLIMIT_NPROC"] = limits.processes + (0 if _own_count() else _running())
    return found


def _own_count() -> bool:
    version = platform.release().split(".")
    try:
        return os.geteuid() == 0 or (int(version[0]), int(version[1])) >= (5, 14)
    except (ValueError, IndexError):
        return False


def _running() -> int:
    import psutil

    own, count = os.getuid(), 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == own:
                count += process.num_threads()
    return count


def _ending(code: int) -> str:
    # A sandbox tells of a signal as 128 + its number.
    number = -code if code < 0 else code - 128
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return "killed: out of processor time or memory"
    if number > 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(number).name}"
    return f"ended early (exit code {code})"


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
