"""What Hydra discovers of qsweep: the launcher, and the folder of sweep files.

Every module under ``hydra_plugins`` is imported at start, so nothing heavy is imported here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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


_BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class QsweepLauncher(Launcher):
    """Composes all trials first, so that an edit during a sweep changes none, then runs them."""

    def __init__(self) -> None:
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self._run: Any = None
        self._compose: Any = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra hands over; refuse a sweeper that would make many sweeps of one.

        The task function is a :class:`qsweep.commands.sweep.HydraRun`.
        """
        from qsweep.commands.sweep import require_one_process

        require_one_process(config.hydra)
        self.hydra_context, self.config = hydra_context, config
        self._run = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run one trial per list of overrides; returns a JobReturn with the record of each."""
        from hydra.core.utils import JobReturn, JobStatus

        from qsweep.commands.sweep import hide_in_files
        from qsweep.sweep.compose import Composer

        assert self.hydra_context is not None and self.config is not None
        if self._compose is None:
            hide_in_files(Path(self.config.hydra.sweep.dir))  # another sweeper's multirun.yaml
            self._compose = Composer(self.hydra_context.config_loader, self.config)
        configs = [self._compose(overrides) for overrides in job_overrides]
        name = self.config.hydra.job.config_name or "config"
        if self.config.hydra.sweeper._target_ == _BASIC_SWEEPER:  # it hands over batch after batch
            self._run.keep(configs, name)
            return [JobReturn(overrides=o, status=JobStatus.COMPLETED) for o in job_overrides]
        records = self._run.run_composed(configs, list(self.config.hydra.overrides.task), name)
        return [
            JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=record)
            for overrides, record in zip(job_overrides, records, strict=True)
        ]


class QsweepSearchPath(SearchPathPlugin):
    """Lets ``--config-name`` find the files of ``sweeps``, and choices those of other packages."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folder ``sweeps`` after ``conf``, then what is offered by entry points."""
        from qsweep.base.config_files import config_folder
        from qsweep.base.plugins import offered

        search_path.append("qsweep", f"file://{config_folder('sweeps')}")
        search_path.append("qsweep", "qsweep-entry-points://all")
        search_path.append("qsweep", "qsweep-blends://all")
        for point in offered("qsweep.conf").values():
            search_path.append(point.name, f"pkg://{point.value}")
