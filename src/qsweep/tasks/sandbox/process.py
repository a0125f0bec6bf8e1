"""Processes in the sandbox, seen from outside: started within limits, watched, killed."""

import contextlib
import json
import os
import platform
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qsweep.tasks.sandbox import usage
from qsweep.tasks.sandbox.cgroup import ControlGroup
from qsweep.tasks.sandbox.isolation import SCRATCH, SCRATCH_FILES

# How often the memory of all processes is added up: what a core can fill meanwhile is 0.1 GB or so.
_LOOK_EVERY_S = 0.05
# How long the shells around a program may take to end after it.
_SETTLE_S = 2.0


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

    @property
    def memory_bytes(self) -> int:
        """What all its processes may hold together."""
        return self.memory_mb << 20

    @property
    def scratch_bytes(self) -> int:
        """What its scratch directory may hold."""
        return self.memory_bytes // 8


@dataclass(frozen=True)
class SandboxedProcess:
    """A process that was started in the sandbox, and the control group that it is in, if any."""

    process: "subprocess.Popen[bytes]"
    group: ControlGroup | None

    def settle(self) -> None:
        """Give one that has ended inside a moment to tell of it outside."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_SETTLE_S)

    def end(self) -> None:
        """Kill it and all that it started."""
        # The group, and with the first process of its own tree all that it ever started.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def exceeds_memory(self, limits: Limits) -> bool:
        """Whether it and all that it started hold more memory than they may."""
        if self.group is not None and self.group.ran_out():
            return True
        pid = self.process.pid
        if self.group is None and usage.exceeds_file_count(pid, SCRATCH, SCRATCH_FILES):
            return True
        return usage.exceeds_memory(pid, limits.memory_bytes)

    def ending(self, limits: Limits) -> str:
        """How it ended, in words, once it has ended."""
        if self.group is not None and self.group.ran_out():
            return out_of_memory(limits)
        # A sandbox tells of a signal as 128 + its number.
        code = self.process.returncode
        number = -code if code < 0 else code - 128
        if number in (signal.SIGXCPU, signal.SIGKILL):
            return "killed: out of processor time or memory"
        if number > 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(number).name}"
        return f"ended early (exit code {code})"


def start(
    command: Sequence[str],
    order: Mapping[str, Any],
    group: ControlGroup | None,
    output: int,
    descriptors: Sequence[int],
) -> SandboxedProcess:
    """Start a sandboxed interpreter on an order, which it reads from its standard input.

    Args:
        command: Starts the interpreter.
        order: Its role and what it needs, plain data.
        group: The control group that it enters, if any.
        output: File descriptor that takes what it prints.
        descriptors: File descriptors that it is lent besides.

    Raises:
        OSError: It cannot be started.
    """
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(order).encode())
        file.seek(0)
        process = subprocess.Popen(  # noqa: S603
            list(command) if group is None else group.command(list(command)),
            stdin=file,
            stdout=output,
            stderr=output,
            pass_fds=tuple(descriptors),
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"},
            cwd="/",
            start_new_session=True,
        )
    return SandboxedProcess(process, group)


def watch(
    processes: Sequence[SandboxedProcess], output: int, verdict: int, limits: Limits
) -> tuple[bytes, bytes, str]:
    """Read until the verdict is there or a limit is met: output, verdict, which limit it was.

    A verdict is there when its pipe ends: whoever holds it has written it, or is gone.

    Args:
        processes: What is watched for its memory.
        output: File descriptor of what they print.
        verdict: File descriptor of the verdict.
        limits: When to stop.
    """
    deadline = time.monotonic() + limits.wall_s
    look = time.monotonic() + _LOOK_EVERY_S
    read = {output: bytearray(), verdict: bytearray()}
    stopped = ""
    with selectors.DefaultSelector() as selector:
        for descriptor in read:
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        while verdict in (open_ := {key.fd for key in selector.get_map().values()}) and not stopped:
            now = time.monotonic()
            if now >= deadline:
                stopped = f"timed out after {limits.wall_s:g} s"
            if now >= look:
                look = now + _LOOK_EVERY_S
                if any(process.exceeds_memory(limits) for process in processes):
                    stopped = out_of_memory(limits)
            for key, _ in selector.select(max(min(deadline, look) - now, 0)):
                stopped = _take(key.fd, read[key.fd], limits, selector) or stopped
        if not stopped and output in open_:
            # What was printed before the verdict is in the pipe by now.
            stopped = _take(output, read[output], limits, selector)
    outputs = [bytes(found[: limits.output_bytes]) for found in read.values()]
    return outputs[0], outputs[1], stopped


def _take(
    descriptor: int, into: bytearray, limits: Limits, selector: selectors.BaseSelector
) -> str:
    with contextlib.suppress(BlockingIOError):
        while len(into) <= limits.output_bytes:
            chunk = os.read(descriptor, 65536)
            if not chunk:
                selector.unregister(descriptor)
                return ""
            into += chunk
        return f"printed more than {limits.output_bytes} bytes"
    return ""


def out_of_memory(limits: Limits) -> str:
    """The words for a program that held too much."""
    return f"held more than {limits.memory_mb} MB of memory"


def resource_limits(limits: Limits, *, confined: bool) -> dict[str, int]:
    """What each process is bound by, by names of the module resource."""
    found = {
        "RLIMIT_CPU": limits.cpu_s,
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_FSIZE": limits.scratch_bytes,
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_MSGQUEUE": 0,
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
