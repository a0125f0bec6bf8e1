"""Where a measurement's arrays are, and what is read of them."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.base.manifest import MANIFEST, open_entry
from qsweep.results.record import Measurement, Record
from qsweep.text.windows import CONVERSATIONS

if TYPE_CHECKING:
    import numpy as np

# A measurement's per-token arrays, None where they are not kept any more.
FindArrays = Callable[[Record, Measurement], Path | None]


def stored_arrays(record: Record, measurement: Measurement) -> Path | None:
    """The arrays where the store keeps them, if they are what was measured."""
    if not (folder := measurement.file):
        return None
    path = Path(folder) / "arrays.safetensors"
    if not path.is_file():
        return None
    manifest = path.parent / MANIFEST
    if manifest.exists() and not _is_whole(path.parent, stamp(path), stamp(manifest)):
        return None
    return path


def stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does, its own time stamps set back or not."""
    stat = path.stat()
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=8192)
def _is_whole(folder: Path, *stamps: tuple[int, ...]) -> bool:
    # Several tables and pages ask for the arrays of all trials; each is hashed once.
    try:
        open_entry(folder, full=True)
    except ArtifactCorrupt:
        return False
    return True


def tells_positions(facts: Mapping[str, Any]) -> bool:
    """Whether how many tokens each window scores tells where they stand in it.

    Windows that do not overlap are whole and scored to their end, but for conversations.
    """
    return "stride" not in facts and facts.get("preset") != CONVERSATIONS.name


def read_arrays(path: Path, *names: str) -> "dict[str, np.ndarray] | None":
    """Those of the named arrays that a file has; None if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in names if name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError):
        return None
