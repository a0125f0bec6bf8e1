"""qsweep: what quantization costs a language model, measured over whole grids."""

from pathlib import Path

from qsweep.base.version import __version__

__all__ = ["__version__"]

# ``python -m qsweep.report``: commands are found by their own names, too.
__path__.append(str(Path(__file__).parent / "commands"))
