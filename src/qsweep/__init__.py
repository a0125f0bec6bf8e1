"""qsweep: what quantization costs a language model, measured over whole grids."""

__version__ = "0.1.0"
