"""The words of the launcher: a job, what becomes of it, and what is reported on the way."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["finished", "failed", "skipped"]
Kind = Literal["started", "progress", "restarted", "done"]


@dataclass(frozen=True)
class Job:
    """Something to run in a process of its own.

    ``target`` is ``"module:function"``, called there as ``function(payload, progress) -> dict``;
    payload and result are plain JSON. ``progress(step, share)`` may be called as often as wanted.
    ``needs`` are ids of jobs that must have finished first. ``device`` is what it runs on:
    ``auto``, ``cpu``, ``cuda``, ``cuda:N``, or ``all`` for every visible GPU at once.
    """

    id: str
    name: str
    target: str
    payload: dict[str, Any]
    log: Path
    timeout_s: float | None = None
    needs: tuple[str, ...] = ()
    device: str = "auto"
    counts: bool = True
    """Whether it is one of the things that were asked for, and not a preparation for them."""


@dataclass(frozen=True)
class JobResult:
    """What became of a job.

    ``reason`` is one line, absent only where the job finished. ``seconds`` is the life of its
    process, 0 if it never had one. ``peak_host_memory_gb`` is the largest resident set, in 1e9
    bytes, that any single process of the job reached, loaded libraries included.
    ``started`` is in seconds since the epoch.
    """

    status: Status
    result: dict[str, Any] | None = None
    reason: str | None = None
    seconds: float = 0.0
    peak_host_memory_gb: float | None = None
    started: float | None = None


@dataclass(frozen=True)
class Event:
    """Something that a display may want to show. ``share`` is between 0 and 1, None if unknown."""

    kind: Kind
    job: Job
    step: str = ""
    share: float | None = None
    result: JobResult | None = field(default=None, repr=False)


# Tells a job's process which device is its own.
DEVICE_VARIABLE = "QSWEEP_DEVICE"


def slot_device() -> str | None:
    """Inside a job: the device that is its own (``cpu``, ``cuda:0``, or ``cuda`` for all GPUs)."""
    return os.environ.get(DEVICE_VARIABLE)
