"""One line that says what killed a job."""

import signal
from pathlib import Path

from qsweep.errors import QsweepError, in_one_line

# Exit status of a job that had not even the memory left to say so.
OUT_OF_MEMORY = 72

_MEMORY_TEXTS = ("DefaultCPUAllocator", "not enough memory", "std::bad_alloc", "Cannot allocate")


def explain(error: BaseException) -> str:
    """One line for an exception: its type and text, or what it means where that is known."""
    text = in_one_line(str(error))
    if isinstance(error, QsweepError) and text:
        return text
    kinds = {kind.__name__ for kind in type(error).__mro__}
    described = f"{type(error).__name__}: {text}" if text else type(error).__name__
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
