"""What Hydra discovers of other packages' entry points: each is a choice of a configuration group.

Every module under ``hydra_plugins`` is imported at start, so nothing heavy is imported here.
"""

from typing import Any

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

SCHEME = "qsweep-entry-points"


class EntryPointSource(ConfigSource):
    """Configurations made of entry points: the options' defaults, and the sweep's own values."""

    @staticmethod
    def scheme() -> str:
        """What stands before ``://`` in a search path."""
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """The choice ``group/name``; only now is the package imported."""
        from qsweep.sweep.entry_points import configuration

        group, _, name = _bare(config_path).rpartition("/")
        package: dict[str, str | None] = {"package": None}
        node: Any = OmegaConf.create(configuration(group, name))
        return ConfigResult(
            provider=self.provider, path=self.full_path(), config=node, header=package
        )

    def available(self) -> bool:
        """Always: it reads nothing that could be missing."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether packages offer choices of it."""
        return bool(_names(config_path))

    def is_config(self, config_path: str) -> bool:
        """Whether a package offers this choice."""
        group, _, name = _bare(config_path).rpartition("/")
        return name in _names(group)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The choices of a group."""
        if results_filter == ObjectType.GROUP:
            return []
        return _names(config_path)


def _names(group: str) -> list[str]:
    from qsweep.base.config_files import ENTRY_POINT_GROUPS
    from qsweep.base.plugins import offered

    points = ENTRY_POINT_GROUPS.get(group.strip("/"))
    return sorted(offered(points)) if points else []


def _bare(config_path: str) -> str:
    return config_path.removesuffix(".yaml").strip("/")
