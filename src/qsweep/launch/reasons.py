"""One line that says what killed a job."""

import re
import signal
from pathlib import Path

from qsweep.base.disk import FULL, disk_full, is_disk_full
from qsweep.base.errors import QsweepError, in_one_line
from qsweep.base.secrets import hidden

# Exit status of a job that had not even the memory left to say so.
OUT_OF_MEMORY = 72

# What the interpreter, the C++ runtime, the C library and the dynamic loader say as they give up.
_FATAL = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^Fatal Python error: .+",
        r"^terminate called .+",
        r"^  what\(\): +(.+)",
        r"^.*: Assertion `.*' failed\.$",
        r"^.*error while loading shared libraries: .+",
        r"^.*: can't open file .+",
        r"^\*\*\* .+ \*\*\*: terminated$",
        r"^(?:malloc|free|realloc|munmap_chunk)\(\): .+",
    )
)
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(: .*)?$")
_MEMORY_TEXTS = ("DefaultCPUAllocator", "not enough memory", "std::bad_alloc", "Cannot allocate")


def explain(error: BaseException) -> str:
    """One line for an exception: its type and text, or what it means where that is known."""
    text = hidden(in_one_line(str(error)))
    if isinstance(error, QsweepError) and text:
        return text
    kinds = {kind.__name__ for kind in type(error).__mro__}
    described = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if is_disk_full(error):
        place = getattr(error, "filename", None)
        return disk_full(Path(place).parent) if isinstance(place, str) else f"{FULL} ({described})"
    if isinstance(error, MemoryError):
        return f"out of memory ({described})"
    if "OutOfMemoryError" in kinds or "CUDA out of memory" in text:
        return f"out of GPU memory ({described})"
    if "AcceleratorError" in kinds or "CUDA error" in text or "CUDNN_STATUS" in text:
        return f"CUDA error ({described})"
    if any(part in text for part in _MEMORY_TEXTS):
        return f"out of memory ({described})"
    return described


def explain_exit(status: int, *, kernel_oom: bool, log: Path | None = None) -> str:
    """One line for a process that ended without giving a result.

    ``status`` is the exit code, or minus the signal. ``kernel_oom`` tells whether the kernel killed
    any process for want of memory while this one ran. ``log`` is where it wrote.
    """
    if status == OUT_OF_MEMORY or (status < 0 and _ended_in_bad_alloc(log)):
        return "out of memory"
    if status >= 0:
        return f"exited with status {status} without a result"
    name = _signal_name(-status)
    if -status != signal.SIGKILL:
        return f"killed by signal {-status} ({name})"
    if kernel_oom:
        return f"out of memory (killed by the kernel: signal {-status}, {name})"
    return f"killed by signal {-status} ({name}); out of memory?"


def fatal_line(output: str, status: int) -> str:
    """The line with which a process that died said why; empty where it said nothing of the kind.

    The last line of an output is as likely a warning that some library gave long before.
    ``status`` is the exit code, or minus the signal.
    """
    lines = [line.rstrip() for line in output.splitlines() if line.strip()][-50:]
    tail = "\n".join(lines)
    if fatal := [found for pattern in _FATAL for found in pattern.findall(tail)]:
        return hidden(in_one_line(fatal[-1]))
    before, found, traceback = tail.rpartition("Traceback (most recent call last):\n")
    ignored = before.rpartition("\n")[0].rpartition("\n")[2].startswith("Exception ignored in")
    # An exception ends the interpreter with a status, and its traceback ends the output.
    if status > 0 and found and not ignored and not lines[-1].startswith(" "):
        outside = [line for line in traceback.splitlines() if not line.startswith(" ")]
        if _EXCEPTION.match(outside[0]):
            return hidden(in_one_line(outside[0]))
    return ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return "unnamed"


def _ended_in_bad_alloc(log: Path | None) -> bool:
    if log is None:
        return False
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, 2) - 8192, 0))
            return b"std::bad_alloc" in file.read()
    except OSError:
        return False
