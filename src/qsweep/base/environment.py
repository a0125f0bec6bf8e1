"""What a trial ran in: versions, hardware, commit. Nothing heavy is imported to find out."""

import copy
import csv
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from qsweep.base.version import __version__

# Distributions whose version can change a number, or how it was made.
PACKAGES = (
    "accelerate",
    "datasets",
    "gguf",
    "gptqmodel",
    "hydra-core",
    "llama-cpp-python",
    "mlflow",
    "numpy",
    "omegaconf",
    "optimum",
    "optuna",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
)


def environment() -> dict[str, Any]:
    """Versions, hardware and commit as a plain dict, found once per process.

    Keys: ``qsweep``, ``git_commit`` (None outside a checkout of qsweep), ``git_dirty``, ``python``,
    ``platform``, ``cpu`` (its name), ``cpu_cores`` (that this process may use), ``memory_gb``,
    ``gpus`` (``name``, ``memory_gb``, ``driver`` of each), ``cuda_visible_devices`` and
    ``packages`` (only the installed ones).
    """
    return copy.deepcopy(_environment())


@cache
def _environment() -> dict[str, Any]:
    import psutil

    return {
        "qsweep": __version__,
        **git_state(Path(__file__).parents[1]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": gpus(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "packages": package_versions(PACKAGES),
    }


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those distributions that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_state(folder: Path) -> dict[str, Any]:
    """``git_commit`` and ``git_dirty`` of the checkout that ``folder`` belongs to.

    Both are None where the folder's files are not tracked: an installed package inside somebody
    else's repository must not be labelled with that repository's commit.
    """
    unknown: dict[str, Any] = {"git_commit": None, "git_dirty": None}
    if output_of("git", "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py") is None:
        return unknown
    commit = output_of("git", "-C", str(folder), "rev-parse", "HEAD")
    if commit is None:
        return unknown
    changed = output_of("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": bool(changed)}


def gpus() -> list[dict[str, Any]]:
    """The GPUs that the driver lists, visible to this process or not; none without a driver."""
    listing = output_of(
        "nvidia-smi",
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader,nounits",
    )
    return parse_gpus(listing or "")


def parse_gpus(listing: str) -> list[dict[str, Any]]:
    """Read nvidia-smi's CSV: name, total memory in MiB, driver. Memory comes back in GB."""
    found = []
    for row in csv.reader(listing.splitlines(), skipinitialspace=True):
        if len(row) == 3:
            name, mebibytes, driver = (cell.strip() for cell in row)
            memory = round(float(mebibytes) * 2**20 / 1e9, 1) if mebibytes.isdigit() else None
            found.append({"name": name, "memory_gb": memory, "driver": driver})
    return found


def output_of(*command: str) -> str | None:
    """What a program prints, stripped; None where it is missing or fails within 20 seconds.

    A wedged driver makes nvidia-smi wait for ever.
    """
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [program, *command[1:]], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine_identity(device: str) -> dict[str, Any]:
    """What a speed depends on beside the artifact: the processor, and the runtimes' versions."""
    found = environment()
    gpus = [gpu["name"] for gpu in found["gpus"]] if device.startswith("cuda") else []
    runtimes = ("torch", "transformers", "gptqmodel", "llama-cpp-python")
    return {
        "device": device.partition(":")[0],
        "processor": gpus or [found["cpu"], found["cpu_cores"]],
        "runtimes": {name: found["packages"].get(name) for name in runtimes},
    }
