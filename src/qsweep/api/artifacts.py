"""Sweeps over artifacts that exist: the one way in which a call and a command measure them."""

from collections.abc import Sequence
from pathlib import Path

from qsweep.api.composition import compose_trials
from qsweep.base.errors import ConfigError
from qsweep.base.keys import key_of
from qsweep.quantizers.existing import Existing, read_existing
from qsweep.search.batch import one_batch
from qsweep.sweep.compose import Composed
from qsweep.sweep.config import sweep_config
from qsweep.sweep.session import run_sweep
from qsweep.sweep.state import Sweep

# What an artifact was made by is only read.
_MADE_BY = ("quant", "bits", "group_size", "desc_act", "sym")


def measure_artifacts(artifacts: Sequence[Path], words: Sequence[str], command: str) -> Sweep:
    """Measure artifacts as one sweep.

    Args:
        artifacts: Absolute paths.
        words: Overrides that say against what, on what and how.
        command: What was called, for the records.

    Raises:
        QsweepError: As :func:`qsweep.measure`.
    """
    for name in (word.partition("=")[0].lstrip("+~") for word in words):
        if name.partition(".")[0] in _MADE_BY:
            raise ConfigError(f"{name}: is what the artifact was made by, and only read here")
    for place in artifacts:
        read_existing(place)
    base = compose_trials(words)
    configs = one_batch([_of(place, one) for place in artifacts for one in base], words)
    own = sweep_config(configs[0]).name
    what = "-".join(place.name for place in artifacts)
    return run_sweep(configs, own or f"{what[:40]}-{key_of(_identity(artifacts))[:8]}", command)


def _of(artifact: Path, base: Composed) -> Composed:
    target = f"{Existing.__module__}.{Existing.__qualname__}"
    quant = {"quant": {"_target_": target, "path": str(artifact)}}
    config = Composed({**base, **quant})
    config.written = {**base.written, **quant}
    return config


def _identity(artifacts: Sequence[Path]) -> str | list[str]:
    # One by itself is what it was before there could be several.
    paths = [str(place) for place in artifacts]
    return paths[0] if len(paths) == 1 else paths
