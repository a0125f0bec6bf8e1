"""The GPUs that this machine shows, without importing torch, which would initialise CUDA here."""

import os
import re
import shutil
import subprocess
from pathlib import Path

_DRIVER_FILES = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")


def visible_gpus() -> list[str]:
    """The GPUs that CUDA would show, as ``CUDA_VISIBLE_DEVICES`` spells them."""
    if not any(Path(file).exists() for file in _DRIVER_FILES):
        return []
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return _installed_gpus() if listed is None else parse_visible(listed)


def parse_visible(listed: str) -> list[str]:
    """Read ``CUDA_VISIBLE_DEVICES`` like CUDA: whatever follows an invalid entry is hidden."""
    gpus: list[str] = []
    for entry in (part.strip() for part in listed.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-\S+", entry) or entry in gpus:
            break
        gpus.append(entry)
    return gpus


def parse_listing(listing: str) -> list[str]:
    """Read the output of ``nvidia-smi -L``: indices of GPUs, or the ids of their MIG slices."""
    slices = re.findall(r"^\s+MIG .*\(UUID: (MIG-\S+)\)", listing, re.MULTILINE)
    return slices or re.findall(r"^GPU (\d+): ", listing, re.MULTILINE)


def _installed_gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program:
        try:
            done = subprocess.run(  # noqa: S603
                [program, "-L"], capture_output=True, text=True, timeout=20, check=True
            )
            return parse_listing(done.stdout)
        except (OSError, subprocess.SubprocessError):
            pass
    return [str(n) for n in range(_count_devices())]


def _count_devices(proc: Path = Path("/proc/driver/nvidia/gpus"), dev: Path = Path("/dev")) -> int:
    # Containers often have neither nvidia-smi nor all of /proc, but never lack the device files.
    if proc.is_dir():
        return len(list(proc.iterdir()))
    return sum(bool(re.fullmatch(r"nvidia\d+", file.name)) for file in dev.iterdir())
