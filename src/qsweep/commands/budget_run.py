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
from qsweep.search.space import overrides_of
from qsweep.search.sweep_file import read_space
from qsweep.sweep.compose import Composed, Composer
from qsweep.sweep.config import sweep_config, trial_config
from qsweep.sweep.naming import default_name
from qsweep.sweep.session import Sweep, open_session, open_store


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
    configs = [compose(overrides_of(params)) for params in space.combinations()]
    own = [{name: config.pop(name, None) for name in OPTIONS} for config in configs][0]
    for config in configs:
        config.written = {k: v for k, v in config.written.items() if k not in OPTIONS}
    budgets, context = _asked(own, typed)
    settings = budget_config(own["budget"] or {})
    configs = one_batch(configs, rest)
    require_divergence(configs)

    config_name = hydra.job.config_name or "config"
    name = sweep_config(configs[0]).name or default_name(list(hydra.overrides.task), config_name)
    sweep = Sweep(sweep_config(configs[0]), name, sweeper.run.command)
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


def require_divergence(configs: Sequence[Composed]) -> None:
    """Refuse an evaluation that leaves nothing to choose by. Raises ConfigError."""
    for config in configs:
        if not trial_config(config).eval.divergence:
            raise ConfigError(
                "eval.divergence=false: within a budget models are compared by their divergence; leave "
                "it out"
            )


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The overrides that are about budgets, by name, and the others."""
    typed, rest = {}, []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name.lstrip("+") in (*KINDS, "context"):
            typed[name.lstrip("+")] = value
        else:
            rest.append(argument)
    return typed, rest


def _asked(own: Mapping[str, Any], typed: Mapping[str, str]) -> tuple[list[Budget], int | None]:
    given: dict[str, list[Any]] = {kind: _several(own.get(kind)) for kind in KINDS}
    if kinds := [kind for kind in KINDS if kind in typed]:
        # What is typed replaces what the file says, whichever kind that is.
        given = {kind: typed[kind].strip("[]").split(",") for kind in kinds}
    budgets = read_budgets(given)
    value: Any = own.get("context")
    if "context" in typed:
        text = typed["context"]
        value = int(text) if text.isdecimal() else None if text == "null" else text
    return budgets, read_context(value, needed=budgets[0].kind == "vram_gb")


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
