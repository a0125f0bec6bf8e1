"""Measuring an artifact that exists."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsweep.api.artifacts import measure_artifacts
from qsweep.api.surroundings import untouched
from qsweep.api.words import as_overrides
from qsweep.sweep.state import Sweep


def measure(
    artifact: str | Path, overrides: Mapping[str, Any] | None = None, /, **named: Any
) -> Sweep:
    """Measure an artifact against the unquantized model, by the same protocol as a sweep.

    The same as ``quant=artifact quant.path=…`` on a command line: it is read by the one engine that
    measures all formats, whoever made it, and docs/artifacts.md says which can be read. A pattern
    such as ``models/*.gguf`` measures all that it matches.

    Args:
        artifact: A GGUF file, a checkpoint's directory, or what a sweep made
            (a folder in ``outputs/store/artifacts``).
        overrides: Options whose names have a dot, as for :func:`qsweep.run`; ``model.pack`` names a
            reference pack in place of the model.
        **named: ``model`` (the unquantized model), ``corpus``, ``eval``, ``device`` and others.

    Returns:
        A sweep whose table has the artifact's rows and the reference's.

    Raises:
        QsweepError: The configuration is invalid, or the artifact is in a format that the engine
            cannot read. One that turns out not to be of this model is a row that was skipped,
            with the reason.

    Example:
        >>> import qsweep
        >>> brief = {"eval.max_windows": 2, "eval.noise_floor": False}
        >>> how = {"corpus": "python_docs", "tracking": "none"}
        >>> made = qsweep.run(brief, quant="rtn", bits=8, **how).table()
        >>> again = qsweep.measure(made["artifact"][0], brief, **how).table()
        >>> bool(made["ppl"][0] == again["ppl"][0])
        True
    """
    words = list(as_overrides(dict(overrides or {}) | named))
    with untouched():
        return measure_artifacts([str(artifact)], words, f"qsweep.measure({str(artifact)!r})")
