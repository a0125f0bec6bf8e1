"""Runs generated programs where they can do no harm."""

from qsweep.tasks.sandbox.run import (
    Limits,
    Outcome,
    Sandbox,
    find_sandbox,
    run_program,
    run_programs,
)

__all__ = ["Limits", "Outcome", "Sandbox", "find_sandbox", "run_program", "run_programs"]
