"""What Hydra discovers of qsweep's sweepers: a grid, a search by Optuna, the best within a budget.

Every module under ``hydra_plugins`` is imported at start, so nothing heavy is imported here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class QsweepSweeperConfig:
    """``params`` times ``when`` they apply, for each of ``trials``: see ``qsweep.search.sweep_file``."""

    _target_: str = "hydra_plugins.qsweep_sweeper.QsweepSweeper"
    params: dict[str, Any] | None = field(default_factory=dict)
    when: dict[str, Any] | None = field(default_factory=dict)
    trials: list[Any] | None = field(default_factory=list)


@dataclass
class QsweepOptunaConfig(QsweepSweeperConfig):
    """The same space; how it is searched is in the group ``search``."""

    _target_: str = "hydra_plugins.qsweep_sweeper.QsweepOptunaSweeper"


@dataclass
class QsweepBudgetConfig(QsweepSweeperConfig):
    """The same space, of what the layers of one model may become."""

    _target_: str = "hydra_plugins.qsweep_sweeper.QsweepBudgetSweeper"


for name, node in (
    ("qsweep", QsweepSweeperConfig),
    ("qsweep_optuna", QsweepOptunaConfig),
    ("qsweep_budget", QsweepBudgetConfig),
):
    ConfigStore.instance().store(group="hydra/sweeper", name=name, node=node, provider="qsweep")


class QsweepSweeper(Sweeper):
    """Every combination, handed to the launcher at once."""

    def __init__(self, params: Any = None, when: Any = None, trials: Any = None) -> None:
        self.params, self.when, self.trials = (_plain(v) for v in (params, when, trials))
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.run: Any = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra hands over, and prepare the launcher."""
        from hydra.core.plugins import Plugins

        from qsweep.commands.sweep import require_one_process

        require_one_process(config.hydra)
        self.hydra_context, self.config = hydra_context, config
        self.run = task_function
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[Any]:
        """Run the grid; returns a list of one batch of JobReturns, as Hydra's own sweeper does."""
        from qsweep.search.sweep_file import read_trials

        assert self.launcher is not None
        jobs = read_trials(self.params, self.when, self.trials, arguments)
        results = self.launcher.launch(jobs, initial_job_idx=0)
        for result in results:
            _ = result.return_value  # raises what a foreign launcher's job raised
        return [results]


class QsweepOptunaSweeper(QsweepSweeper):
    """Asks a study what to run next, runs it through the launcher, and tells the study."""

    def sweep(self, arguments: list[str]) -> Any:
        """Search, then write and print the answer."""
        from qsweep.commands.search_run import run_search

        assert self.launcher is not None and self.hydra_context is not None
        assert self.config is not None
        return run_search(self, arguments)


class QsweepBudgetSweeper(QsweepSweeper):
    """Chooses bits layer by layer within a budget, and measures what comes of it."""

    def sweep(self, arguments: list[str]) -> Any:
        """Make candidates and mixes, then write and print the answer."""
        from qsweep.commands.budget_run import run_budget

        assert self.launcher is not None and self.hydra_context is not None
        assert self.config is not None
        return run_budget(self, arguments)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
