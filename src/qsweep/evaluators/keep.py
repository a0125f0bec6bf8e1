"""A bridge: measure the reference and make its cache in one pass, in two calls."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from qsweep.evaluators.reference import build_reference

if TYPE_CHECKING:
    from qsweep.windows import Windows


class Keep:
    """Where :func:`~qsweep.evaluators.measure` puts the cache that it makes on its way."""

    body: str | None = None

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="qsweep-reference-")
        self.states = Path(self._folder.name)

    def fill(self, *arguments: object) -> None:
        """Build the cache."""
        build_reference(arguments[0], arguments[1], self.states, arguments[2])  # type: ignore[arg-type]


def save_reference(states: Path, body: str | None, windows: "Windows", out: Path) -> None:
    """Move a cache to its place."""
    for file in states.iterdir():
        shutil.move(file, out / file.name)
