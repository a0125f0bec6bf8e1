"""Sweeps over artifacts that exist: the one way in which a call and a command measure them."""

from collections.abc import Sequence
from pathlib import Path

from qsweep.api.composition import compose_trials
from qsweep.base.errors import ConfigError
from qsweep.base.keys import key_of
from qsweep.quantizers.artifact import container_of
from qsweep.search.batch import one_batch
from qsweep.sweep.config import sweep_config
from qsweep.sweep.overrides import quote
from qsweep.sweep.session import run_sweep
from qsweep.sweep.state import Sweep

# What an artifact was made by is only read.
_MADE_BY = ("quant", "format", "container", "bits", "group_size", "desc_act", "sym")


def measure_artifacts(artifacts: Sequence[str], words: Sequence[str], command: str) -> Sweep:
    """Measure artifacts as one sweep.

    Args:
        artifacts: Paths and patterns, as ``quant.path`` takes them.
        words: Overrides that say against what, on what and how.
        command: What was called, for the records.

    Raises:
        QsweepError: As :func:`qsweep.measure`.
    """
    for name in (word.partition("=")[0].lstrip("+~") for word in words):
        if name.partition(".")[0] in _MADE_BY:
            raise ConfigError(f"{name}: is what the artifact was made by, and only read here")
    paths = ",".join(map(quote, artifacts))
    words = [*words, "quant=artifact", f"quant.path={paths}"]
    configs = one_batch(compose_trials(words), words)
    places = list(dict.fromkeys(Path(config["quant"]["path"]) for config in configs))
    for place in places:
        container_of(place).size(place)  # raises what is wrong with it
    several = [str(place) for place in places]
    key = key_of(several if len(several) > 1 else several[0])
    label = "-".join(place.name for place in places)[:40]
    name = sweep_config(configs[0]).name or f"{label}-{key[:8]}"
    return run_sweep(configs, name, command)
