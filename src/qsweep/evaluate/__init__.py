"""Measures dense models: perplexity and divergence in one pass, compared with a cached reference."""

from qsweep.evaluate.compare import compare, compare_kld
from qsweep.evaluate.measure import measure
from qsweep.evaluate.measurement import (
    PROTOCOL_VERSION,
    WindowScores,
    read_measurement,
    save_measurement,
)
from qsweep.evaluate.noise import noise_floor
from qsweep.evaluate.reference import (
    Reference,
    build_reference,
    open_reference,
    reference_measurement,
)

__all__ = [
    "PROTOCOL_VERSION",
    "WindowScores",
    "Reference",
    "build_reference",
    "compare",
    "compare_kld",
    "measure",
    "noise_floor",
    "open_reference",
    "read_measurement",
    "reference_measurement",
    "save_measurement",
]
