"""Configurations from Python, composed by Hydra's own loader; nothing of Hydra's state is touched."""

from collections.abc import Sequence
from typing import Any

from qsweep.base.config_files import config_folder, group_choices
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.search.sweep_file import read_trials
from qsweep.sweep.compose import Composed, Composer, register_resolvers
from qsweep.sweep.explain import explain
from qsweep.sweep.overrides import acceptable


def compose_trials(words: Sequence[str], file: str | None = None) -> list[Composed]:
    """The configuration of every trial that overrides and a sweep file describe.

    Raises:
        ConfigError: whatever is wrong with them, in one line.
    """
    try:
        return _compose([acceptable(word, group_choices()) for word in words], file)
    except QsweepError:
        raise
    except Exception as error:  # of Hydra, OmegaConf and YAML, whose errors have no common kind
        if getattr(error, "errno", None):
            raise
        raise ConfigError(explain(error)) from error


def _compose(words: Sequence[str], file: str | None) -> list[Composed]:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    register_resolvers()
    loader = ConfigLoaderImpl(create_config_search_path(str(config_folder("conf"))))
    master = loader.load_configuration(file or "config", [], RunMode.MULTIRUN)
    sweeper: Any = OmegaConf.to_container(master.hydra.sweeper, resolve=True)
    if not str(sweeper["_target_"]).endswith(".QsweepSweeper"):
        raise ConfigError(
            f"file={file}: is a search, which answers on the command line: "
            f"qsweep --config-name={file}"
        )
    trials = read_trials(sweeper.get("params"), sweeper.get("when"), sweeper.get("trials"), words)
    compose = Composer(loader, master)
    return [compose(overrides) for overrides in trials]
