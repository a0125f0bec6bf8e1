"""What Hydra discovers of blends: ``calibration=A:0.7+B:0.3`` is a choice, though no file is called so.

Every module under ``hydra_plugins`` is imported at start, so nothing heavy is imported here.
"""

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

SCHEME = "qsweep-blends"


class BlendSource(ConfigSource):
    """Configurations made of the name of a blend; of its texts, files of any source."""

    @staticmethod
    def scheme() -> str:
        """What stands before ``://`` in a search path."""
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """The blend ``calibration/A:0.7+B:0.3``."""
        from qsweep.sweep.blends import blend_config

        package: dict[str, str | None] = {"package": None}
        node = OmegaConf.create(blend_config(_blend_name(config_path)))
        return ConfigResult(
            provider=self.provider, path=self.full_path(), config=node, header=package
        )

    def available(self) -> bool:
        """Always: it reads nothing that could be missing."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Never: the group's choices that can be listed are files."""
        return False

    def is_config(self, config_path: str) -> bool:
        """Whether it is the name of a blend."""
        return bool(_blend_name(config_path))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Nothing: there is no end of blends."""
        return []


def _blend_name(config_path: str) -> str:
    group, _, name = config_path.removesuffix(".yaml").strip("/").rpartition("/")
    return name if group == "calibration" and "+" in name else ""
