"""Measures dense models: perplexity and divergence in one pass, compared with a cached reference."""

from qsweep.evaluators.compare import compare
from qsweep.evaluators.evaluate import measure
from qsweep.evaluators.measurement import (
    PROTOCOL_VERSION,
    Measurement,
    read_measurement,
    save_measurement,
)
from qsweep.evaluators.noise import noise_floor
from qsweep.evaluators.reference import (
    Reference,
    build_reference,
    open_reference,
    reference_measurement,
)

__all__ = [
    "PROTOCOL_VERSION",
    "Measurement",
    "Reference",
    "build_reference",
    "compare",
    "measure",
    "noise_floor",
    "open_reference",
    "read_measurement",
    "reference_measurement",
    "save_measurement",
]
