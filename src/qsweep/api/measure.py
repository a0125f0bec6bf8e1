"""Measuring an artifact that exists."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsweep.api.composition import compose_trials
from qsweep.api.surroundings import untouched
from qsweep.api.words import as_overrides
from qsweep.base.errors import ConfigError
from qsweep.base.keys import key_of
from qsweep.quantizers.existing import Existing, read_existing
from qsweep.search.batch import one_batch
from qsweep.sweep.config import sweep_config
from qsweep.sweep.session import run_sweep
from qsweep.sweep.state import Sweep


def measure(
    artifact: str | Path, overrides: Mapping[str, Any] | None = None, /, **named: Any
) -> Sweep:
    """Measure an artifact against the unquantized model, by the same protocol as a sweep.

    It is read by the one engine that measures all formats. That can read what qsweep itself made
    (the folder in ``outputs/store/artifacts``), and Hugging Face directories in GPTQ, AWQ (gemm),
    compressed-tensors of every dense format, ModelOpt, AutoRound, or unquantized, such as a
    fine-tuned or pruned checkpoint.

    Args:
        artifact: Its directory.
        overrides: Options whose names have a dot, as for :func:`qsweep.run`.
        **named: ``model`` (the unquantized model), ``corpus``, ``eval``, ``device`` and others.

    Returns:
        A sweep whose table has the artifact's rows and the reference's.

    Raises:
        QsweepError: The configuration is invalid, or the artifact is in a format that the engine
            cannot read (such as a GGUF file of another maker). One that turns out not to be
            of this model is a row that failed, with the reason.

    Example:
        >>> import qsweep
        >>> brief = {"eval.max_windows": 2, "eval.noise_floor": False}
        >>> how = {"corpus": "python_docs", "tracking": "none"}
        >>> made = qsweep.run(brief, quant="rtn", bits=8, **how).table()
        >>> again = qsweep.measure(made["artifact"][0], brief, **how).table()
        >>> bool(made["ppl"][0] == again["ppl"][0])
        True
    """
    place = Path(artifact).expanduser().absolute()
    given = dict(overrides or {}) | named
    for name in given:
        if name.partition(".")[0] in ("quant", "bits", "group_size", "desc_act", "sym"):
            raise ConfigError(f"{name}: is what the artifact was made by, and only read here")
    with untouched():
        read_existing(place)
        configs = one_batch(compose_trials(list(as_overrides(given))))
        target = f"{Existing.__module__}.{Existing.__qualname__}"
        for config in configs:
            config["quant"] = {"_target_": target, "path": str(place)}
            config.written["quant"] = dict(config["quant"])
        name = sweep_config(configs[0]).name or f"{place.name[:40]}-{key_of(str(place))[:8]}"
        return run_sweep(configs, name, f"qsweep.measure({str(place)!r})")
