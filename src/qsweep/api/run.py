"""A sweep from Python, in the command line's words."""

from collections.abc import Mapping
from typing import Any

from qsweep.api.composition import compose_trials
from qsweep.api.surroundings import untouched
from qsweep.api.words import as_overrides
from qsweep.search.batch import one_batch
from qsweep.sweep.config import sweep_config
from qsweep.sweep.naming import default_name
from qsweep.sweep.session import command_line, run_sweep
from qsweep.sweep.state import Sweep


def run(
    overrides: Mapping[str, Any] | None = None, /, *, file: str | None = None, **named: Any
) -> Sweep:
    """Run a sweep and return its results; the same call again finds them in the store.

    Options are those of the command line (``qsweep --help``), and mean the same. A
    **list** holds the values that are swept, every combination a trial; a **tuple** is one value
    that is a list, such as several corpora; of ``seeds`` a list is one, too. Progress is shown on
    standard error. What cannot exist is skipped, what fails is a row with its reason: neither raises
    anything.

    Args:
        overrides: Options whose names have a dot: ``{"quant.damp_percent": [0.01, 0.1]}``.
        file: A sweep file's name, as for ``--config-name``.
        **named: Choices of groups (``model``, ``quant``, ``corpus``, ``tracking``, ...) and options
            (``bits``, ``group_size``, ``seed``, ``seeds``, ``n_jobs``, ``sweep``, ``outputs_dir``, ...).

    Returns:
        The sweep: ``table()`` gives its rows, ``directory`` is where its files and report are.

    Raises:
        QsweepError: The configuration is invalid, and nothing has run; one line says what is wrong,
            where and what to do.

    Example:
        >>> import qsweep
        >>> sweep = qsweep.run(
        ...     {"eval.max_windows": 2, "eval.noise_floor": False},
        ...     quant="rtn", bits=[4, 8], corpus="python_docs", tracking="none",
        ... )
        >>> table = sweep.table().sort_values("bits")
        >>> table[["method", "bits", "verdict"]].values.tolist()
        [['rtn', 4, 'yes'], ['rtn', 8, 'yes'], ['none', <NA>, None]]
    """
    given = dict(overrides or {}) | named
    words = list(as_overrides(given))
    with untouched():
        configs = one_batch(compose_trials(words, file), words)
        name = sweep_config(configs[0]).name or default_name(words, file or "config")
        return run_sweep(configs, name, command_line([*_flags(file), *words]))


def _flags(file: str | None) -> list[str]:
    return ["-m"] if file is None else ["-m", f"--config-name={file}"]
