"""What benchmarks share: a clock, and the machine, versions and commit beside their figures."""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class Clock:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds since then: by the wall clock, and of the processor."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"seconds": round(wall, 3), "cpu_s": round(cpu, 3)}


def origin(packages: Iterable[str] | None = None) -> dict[str, Any]:
    """``machine``, ``versions`` (of ``packages`` that are installed; by default all) and ``commit``."""
    from qsweep.base.environment import environment, package_versions

    found = environment()
    versions = found["packages"] if packages is None else package_versions(packages)
    return {
        "machine": {name: found[name] for name in ("cpu", "cpu_cores", "memory_gb", "gpus")},
        "versions": versions,
        "commit": found["git_commit"],
    }


def write(
    file: Path, what: str, rows: Sequence[Any], packages: Iterable[str] | None = None
) -> None:
    """Write rows with their origin as JSON."""
    document = {"what": what, **origin(packages), "rows": rows}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
