"""Number formats: what a weight's codes mean. One short class each, one YAML each in ``conf/format``.

- ``integers``, ``floats``, ``codebooks``, ``ggml``: the formats, with nothing heavy imported.
- ``grids``, ``scales``, ``scheme``, ``superblocks``: the arithmetic that they name, in torch.
"""

from qsweep.formats.numbers.codebooks import FP4, NF4
from qsweep.formats.numbers.floats import (
    FP8,
    MXFP4,
    MXFP4A16,
    MXFP8,
    NVFP4,
    NVFP4A16,
    FP8Block,
    FP8Dynamic,
)
from qsweep.formats.numbers.ggml import Q2K, Q3K, Q4K, Q5K, Q6K, Q40, Q80
from qsweep.formats.numbers.integers import W4A8, W4A16, W4AFP8, W8A8, W8A16, Int, Ternary
from qsweep.formats.numbers.number_format import NumberFormat
from qsweep.formats.numbers.searches import Search

FORMATS: dict[str, type[NumberFormat]] = {
    number.name: number
    for number in (
        *(Int, W4A16, W8A16, W8A8, W4A8, W4AFP8),
        *(FP8, FP8Dynamic, FP8Block),
        *(NVFP4, NVFP4A16, MXFP4, MXFP4A16, MXFP8),
        *(NF4, FP4, Ternary),
        *(Q2K, Q3K, Q4K, Q5K, Q6K, Q40, Q80),
    )
}
"""All that ``format=`` takes, by name."""

__all__ = [
    "FORMATS",
    "FP4",
    "FP8",
    "MXFP4",
    "MXFP8",
    "MXFP4A16",
    "NF4",
    "NVFP4",
    "NVFP4A16",
    "Q2K",
    "Q3K",
    "Q4K",
    "Q5K",
    "Q6K",
    "Q40",
    "Q80",
    "W4A8",
    "W4A16",
    "W4AFP8",
    "W8A8",
    "W8A16",
    "FP8Block",
    "FP8Dynamic",
    "Int",
    "NumberFormat",
    "Search",
    "Ternary",
]
