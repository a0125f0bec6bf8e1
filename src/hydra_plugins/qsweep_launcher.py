"""What Hydra discovers of qsweep: the launcher, and the folder of sweep files.

Every module under ``hydra_plugins`` is imported at start, so nothing heavy is imported here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class QsweepLauncherConfig:
    """The launcher has no options of its own: ``n_jobs`` and ``timeout_s`` are qsweep's."""

    _target_: str = "hydra_plugins.qsweep_launcher.QsweepLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="qsweep", node=QsweepLauncherConfig, provider="qsweep"
)


class QsweepLauncher(Launcher):
    """Composes all trials first, so that an edit during a sweep changes none, then runs them."""

    def __init__(self) -> None:
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra hands over."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run one trial per list of overrides; returns a JobReturn for each."""
        from hydra.core.utils import JobReturn, JobStatus
        from omegaconf import open_dict

        from qsweep.cli import run_composed

        assert self.hydra_context is not None and self.config is not None
        loader = self.hydra_context.config_loader
        configs = []
        for overrides in job_overrides:
            config = loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.pop("hydra", None)
            configs.append(config)
        name = self.config.hydra.job.config_name or "config"
        run_composed(configs, list(self.config.hydra.overrides.task), name)
        return [
            JobReturn(overrides=overrides, cfg=config, status=JobStatus.COMPLETED)
            for overrides, config in zip(job_overrides, configs, strict=True)
        ]


class QsweepSearchPath(SearchPathPlugin):
    """Lets ``--config-name`` find the files of ``sweeps``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folder ``sweeps`` after ``conf``."""
        from qsweep.cli import folder

        search_path.append("qsweep", f"file://{folder('sweeps')}")
