"""What every part works in: a device, a time limit, and a list of figures that is written as it grows."""

import contextlib
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from origin import origin


@dataclass
class Lab:
    """One part's run.

    Attributes:
        part: Its name.
        device: ``cuda:N``, or ``cpu`` to try the code where there is no GPU.
        out: Where ``gpu-PART.json`` and ``gpu-PART.txt`` go.
        quick: Less of everything.
        limit_s: After so many seconds no further step begins.
    """

    part: str
    device: str
    out: Path
    quick: bool
    limit_s: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def on_gpu(self) -> bool:
        """Whether this is a run that counts."""
        return self.device.startswith("cuda")

    @property
    def left_s(self) -> float:
        """Seconds until the limit."""
        return self.limit_s - (time.monotonic() - self.began)

    def add(self, subject: str, what: str, value: float | str, unit: str, **more: Any) -> None:
        """A figure; ``ok`` among ``more`` tells whether it is within its bound."""
        row = {"part": self.part, "subject": subject, "what": what, "value": value, "unit": unit}
        self.rows.append({**row, **more})
        self.write()

    def skip(self, subject: str, what: str, why: str) -> None:
        """A figure that is not known, and why."""
        self.rows.append(
            {"part": self.part, "subject": subject, "what": what, "value": None, "skipped": why}
        )
        self.write()

    @contextlib.contextmanager
    def step(self, subject: str, what: str, needs_s: float = 10.0) -> Iterator[bool]:
        """Do something whose failure must not cost the other figures; false: there is no time."""
        if self.left_s < needs_s:
            self.skip(subject, what, f"{self.left_s:.0f} s left, takes up to {needs_s:.0f} s")
            yield False
            return
        print(f"[{time.monotonic() - self.began:5.0f} s] {subject}: {what}", flush=True)
        try:
            yield True
        except Exception as error:
            traceback.print_exc()
            first = next(iter(str(error).splitlines()), "")
            kind = type(error).__name__
            missing = kind in ("BackendUnavailable", "ModuleNotFoundError", "ImportError")
            reason = f"{kind}: {first}"[:300]
            if missing:
                self.skip(subject, what, reason)
            else:
                self.add(subject, what, reason, "", ok=False)
        finally:
            self.tidy()

    def tidy(self) -> None:
        """Give back what is not used any more."""
        import gc

        import torch

        gc.collect()
        if self.on_gpu:
            with contextlib.suppress(RuntimeError):  # a dead context must not hide its cause
                torch.cuda.empty_cache()

    def wait(self) -> None:
        """Until the device is idle."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def time(self, run: Callable[[], Any], rounds: int = 3) -> float:
        """Median seconds of a few rounds, after one that warms up."""
        run()
        self.wait()
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            run()
            self.wait()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    @contextlib.contextmanager
    def memory(self, subject: str, what: str) -> Iterator[None]:
        """Adds the most that was taken of the device beyond what is taken now (GPU only)."""
        from qsweep.evaluate.footprint import TorchMemory

        if not self.on_gpu:
            yield
            self.skip(subject, what, "no GPU")
            return
        self.wait()
        taken = TorchMemory(self.device)
        yield
        self.add(subject, what, taken.peak_bytes() / 1e9, "GB")

    def write(self) -> None:
        """JSON as all of bench/ writes it."""
        document = {
            "what": f"qsweep on a GPU: {self.part}",
            **stamp(self.device),
            "rows": self.rows,
        }
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"gpu-{self.part}.json"
        path.write_text(json.dumps(document, indent=1) + "\n")

    def finish(self) -> bool:
        """Print and keep the table; whether nothing is out of its bounds."""
        self.write()
        text = table(self.rows)
        print(f"\n{text}", flush=True)
        (self.out / f"gpu-{self.part}.txt").write_text(text + "\n")
        return not any(row.get("ok") is False for row in self.rows)


def stamp(device: str) -> dict[str, Any]:
    """``machine``, ``versions`` and ``commit``; the GPU as torch sees it, since nvidia-smi may lack."""
    import torch

    found = origin()
    machine = {**found["machine"], "device": device}
    if device.startswith("cuda"):
        about = torch.cuda.get_device_properties(device)
        machine |= {
            "gpu": about.name,
            "gpu_memory_gb": round(about.total_memory / 1e9, 1),
            "gpu_capability": f"{about.major}.{about.minor}",
            "gpu_multiprocessors": about.multi_processor_count,
            "driver": driver(),
            "cuda": torch.version.cuda,
        }
    versions = {"python": sys.version.split()[0], **found["versions"]}
    return {**found, "machine": machine, "versions": versions}


def driver() -> str | None:
    """The version of NVIDIA's driver, from nvidia-smi or the kernel's module."""
    import re

    from qsweep.base.environment import gpus

    for gpu in gpus():
        return str(gpu["driver"])
    with contextlib.suppress(OSError):
        found = re.search(r"\b(\d{3}\.[\d.]+)\b", Path("/proc/driver/nvidia/version").read_text())
        return found and found.group(1)
    return None


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as text, those of a subject together."""
    lines = []
    for subject in dict.fromkeys(row["subject"] for row in rows):
        lines += [str(subject), *(_line(row) for row in rows if row["subject"] == subject)]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"  {row['what']:<62} {'-':>12}  skipped: {row['skipped']}"
    value = row["value"]
    shown = f"{value:12.5g}" if isinstance(value, int | float) else f"{value!s:>12}"
    mark = {True: " ok", False: " NOT OK"}.get(row.get("ok"), "")
    return f"  {row['what']:<62} {shown} {row['unit']}{mark}".rstrip()
