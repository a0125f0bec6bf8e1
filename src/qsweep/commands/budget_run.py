"""What Hydra's sweeper runs for a budget: it hands over, the launcher runs the trials."""

from collections.abc import Mapping, Sequence
from typing import Any

from qsweep.base.disk import check_writable
from qsweep.base.errors import ConfigError
from qsweep.search.batch import one_batch
from qsweep.search.budget.page import write_page
from qsweep.search.budget.run import BudgetSearch
from qsweep.search.budget.settings import (
    KINDS,
    OPTIONS,
    Budget,
    budget_config,
    read_budgets,
    read_context,
)
from qsweep.search.space import NOT_A_TRIALS, overrides_of
from qsweep.search.sweep_file import read_space
from qsweep.sweep.compose import Composed, Composer
from qsweep.sweep.config import check_attached, sweep_config, trial_config
from qsweep.sweep.naming import default_name
from qsweep.sweep.session import Sweep, open_session, open_store

_PREFIX = "budget."
# What candidates have in common.
_ONE_OF = ("model", "corpus", "eval", "calibration", "kv_cache", "device", "seed")


def run_budget(sweeper: Any, arguments: Sequence[str]) -> list[Any]:
    """What Hydra's sweeper does: look for the best model within each budget, print and write it.

    Raises:
        ConfigError: The budget or a candidate is not valid; nothing has run.
        QsweepError: A budget is out of range, or nothing could be made; results are written.
    """
    if sweeper.trials:
        raise ConfigError("hydra.sweeper.trials: a budget has no rows; see hydra.sweeper.params")
    hydra = sweeper.config.hydra
    compose = Composer(sweeper.hydra_context.config_loader, sweeper.config)
    typed, rest = _split(arguments)
    space = read_space(sweeper.params, sweeper.when, rest)
    overrides = [overrides_of(params) for params in space.combinations()]
    configs = [compose(words) for words in overrides]
    if configs[0].draws:
        raise ConfigError("seeds: a search within a budget compares one draw of each; leave it out")
    own = [{name: config.pop(name, None) for name in OPTIONS} for config in configs][0]
    for config in configs:
        config.written = {k: v for k, v in config.written.items() if k not in OPTIONS}
    budgets, context = _asked(own, typed)
    settings = budget_config({**(own["budget"] or {}), **_settings(typed)})
    configs = one_batch(configs, rest)
    require_comparable(configs)
    for config, words in zip(configs, overrides, strict=True):
        config.words = tuple(w for w in words if not w.lstrip("+~").startswith(NOT_A_TRIALS))

    config_name = hydra.job.config_name or "config"
    name = sweep_config(configs[0]).name or default_name(list(hydra.overrides.task), config_name)
    sweep = Sweep(sweep_config(configs[0], name), name, sweeper.run.command)
    check_attached(sweep.config)
    check_writable(sweep.config.outputs_dir)
    store = open_store(sweep.config)
    sweeper.run.began = True
    with sweep.config.launcher as jobs, open_session(sweep, store, jobs) as session:
        search = BudgetSearch(session, configs, budgets, context, settings)
        result = search.run()
        page = write_page(sweep, result)
    sweeper.run.conclude(sweep)
    print(page)
    return []


def require_comparable(configs: Sequence[Composed]) -> None:
    """Refuse candidates of which nobody could say which is best. Raises ConfigError."""
    for name in _ONE_OF:
        if any(config.get(name) != configs[0].get(name) for config in configs):
            raise ConfigError(
                f"{name}: a budget is for one, and here are several; give one, or run a command for each"
            )
    # They are evaluated alike.
    if not trial_config(configs[0]).eval.divergence:
        raise ConfigError(
            "eval.divergence=false: within a budget models are compared by their divergence; leave it out"
        )


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The overrides that are about budgets, by name, and the others."""
    typed, rest = {}, []
    for argument in arguments:
        name, _, value = argument.partition("=")
        name = name.lstrip("+")
        if name in (*KINDS, "context") or name.startswith(_PREFIX):
            typed[name] = value
        else:
            rest.append(argument)
    return typed, rest


def _settings(typed: Mapping[str, str]) -> dict[str, Any]:
    return {
        name.removeprefix(_PREFIX): _plain(value)
        for name, value in typed.items()
        if name.startswith(_PREFIX)
    }


def _asked(own: Mapping[str, Any], typed: Mapping[str, str]) -> tuple[list[Budget], int | None]:
    given: dict[str, list[Any]] = {kind: _several(own.get(kind)) for kind in KINDS}
    if kinds := [kind for kind in KINDS if typed.get(kind, "null") != "null"]:
        # What is typed replaces what the file says, whichever kind that is.
        given = {kind: typed[kind].strip("[]").split(",") for kind in kinds}
    given |= {kind: [None] for kind in KINDS if typed.get(kind) == "null"}
    budgets = read_budgets(given)
    value: Any = own.get("context")
    if "context" in typed:
        value = _plain(typed["context"])
    return budgets, read_context(value, needed=budgets[0].kind == "vram_gb")


def _plain(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
