"""Runs generated programs where they can do no harm, and judges them where they cannot interfere."""

from qsweep.tasks.sandbox.process import Limits
from qsweep.tasks.sandbox.run import (
    ProgramResult,
    Sandbox,
    find_sandbox,
    memory_bounds,
    run_program,
    run_programs,
)

__all__ = [
    "Limits",
    "ProgramResult",
    "Sandbox",
    "find_sandbox",
    "memory_bounds",
    "run_program",
    "run_programs",
]
