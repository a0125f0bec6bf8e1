"""qsweep: what quantization costs a language model, measured over whole grids."""

from pathlib import Path

__version__ = "0.1.0"

# ``python -m qsweep.report``: commands are found by their own names, too.
__path__.append(str(Path(__file__).parent / "commands"))
