"""Measuring an artifact that exists."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsweep.api.composition import compose_trials
from qsweep.api.surroundings import untouched
from qsweep.api.words import as_overrides
from qsweep.base.errors import ConfigError
from qsweep.base.keys import key_of
from qsweep.quantizers.artifact import container_of
from qsweep.search.batch import one_batch
from qsweep.sweep.config import sweep_config
from qsweep.sweep.session import run_sweep
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
        overrides: Options whose names have a dot, as for :func:`qsweep.run`.
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
    given = dict(overrides or {}) | named
    for name in given:
        if name.partition(".")[0] in ("quant", "bits", "group_size", "desc_act", "sym"):
            raise ConfigError(f"{name}: is what the artifact was made by, and only read here")
    given |= {"quant": "artifact", "quant.path": str(artifact)}
    with untouched():
        configs = one_batch(compose_trials(list(as_overrides(given))))
        places = [Path(config["quant"]["path"]) for config in configs]
        for place in places:
            container_of(place).size(place)  # raises what is wrong with it
        several = [str(place) for place in places]
        key = key_of(several if len(several) > 1 else several[0])
        label = f"{places[0].name[:40]}-{key[:8]}"
        name = sweep_config(configs[0]).name or label
        return run_sweep(configs, name, f"qsweep.measure({str(artifact)!r})")
