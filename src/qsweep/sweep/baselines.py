"""Rounding to nearest on the grids of a sweep's calibrated trials, where it lacks one. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qsweep.base.keys import key_of
from qsweep.formats.kv_cache.spec import KVCache
from qsweep.formats.kv_cache.types import NONE
from qsweep.formats.numbers import Int
from qsweep.quantizers.rtn import RTN
from qsweep.results.checks import CALIBRATED, grid_of
from qsweep.sweep.config import EvalConfig, TrialConfig

# A check compares ratios, and nothing else is run for it.
_NOT_COMPARED = {"tasks": [], "speed": False, "kld_native": False}


def missing_baselines(trials: Sequence[TrialConfig]) -> list[TrialConfig]:
    """The trials of rounding to nearest that make a sweep's own ones fit to be compared with.

    A calibrated method must not be worse than rounding on the same grid. Where a sweep rounds at the
    same bits and group size but, each by its method's default, with zero elsewhere on the grid, the
    comparison lacks a partner, and that is cheap to make: rounding needs no calibration. A sweep
    that does not round at all asks for no comparison.
    """
    rounded = {_place(trial): trial for trial in trials if trial.quant.method == RTN.method}
    found: dict[str, TrialConfig] = {}
    for trial in trials:
        grid = grid_of(trial.quant.options()) if trial.quant.method in CALIBRATED else None
        if grid is None or "format" in grid or not isinstance(grid["sym"], bool):
            continue  # other formats leave nothing open
        number = Int(grid.pop("container", "auto"))
        wanted = RTN(**grid, format=number)
        other = rounded.get(_place(trial, replace(wanted, sym=not grid["sym"])))
        place = _place(trial, wanted)
        if other is None or place in rounded or place in found:
            continue
        found[place] = replace(
            other,
            quant=wanted,
            eval=_compared(other.eval),
            resolved=_configuration(other.resolved, grid),
            written=_configuration(other.written, grid),
            kv_cache=KVCache(),
        )
    return list(found.values())


def _configuration(other: Mapping[str, Any], grid: Mapping[str, Any]) -> dict[str, Any]:
    target = f"{RTN.__module__}.{RTN.__qualname__}"
    return {
        **other,
        "quant": {"_target_": target, **grid},
        "kv_cache": NONE,
        "eval": {**other["eval"], **_NOT_COMPARED},
    }


def _place(trial: TrialConfig, quant: RTN | None = None) -> str:
    # What is rounded how, and measured on what: of equal ones one is enough.
    options = (quant or trial.quant).options()
    measured = (trial.model, trial.corpora, _compared(trial.eval), trial.device)
    return key_of([options, repr(measured)])


def _compared(evaluation: EvalConfig) -> EvalConfig:
    return replace(evaluation, tasks=(), speed=False, kld_native=False)
