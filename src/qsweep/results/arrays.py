"""Where a measurement's arrays are, and what is read of them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qsweep.base.errors import ArtifactCorrupt
from qsweep.base.manifest import MANIFEST, open_entry
from qsweep.results.record import Measurement, Record

if TYPE_CHECKING:
    import numpy as np

# A measurement's per-token arrays, None where they are not kept any more.
FindArrays = Callable[[Record, Measurement], Path | None]


def stored_arrays(record: Record, measurement: Measurement) -> Path | None:
    """The arrays where the store keeps them, if they are what was measured."""
    if not (folder := measurement.file):
        return None
    path = Path(folder) / "arrays.safetensors"
    if (path.parent / MANIFEST).exists():
        try:
            open_entry(path.parent, full=True)
        except ArtifactCorrupt:
            return None
    return path if path.is_file() else None


def read_arrays(path: Path, *names: str) -> "dict[str, np.ndarray] | None":
    """Those of the named arrays that a file has; None if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in names if name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError):
        return None
