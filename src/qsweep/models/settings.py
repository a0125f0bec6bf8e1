"""Which model: what the configuration group ``model`` says."""

from dataclasses import dataclass
from typing import Literal

from qsweep.base.errors import ConfigError
from qsweep.base.names import absolute_path, check_label

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ModelConfig:
    """Where a model comes from: a directory (``path``), else a hub repository (``repo``).

    ``hint`` says what else there is where no hub can be reached.
    """

    name: str
    path: str | None = None
    repo: str | None = None
    revision: str = "main"
    hint: str | None = None
    dtype: DType = "auto"
    device_map: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self):
        check_label(self.name, "model.name")
        if self.path is None and self.repo is None:
            raise ConfigError(f"model {self.name!r}: give model.path or model.repo")
        if self.path is not None:
            absolute_path(self.path, "model.path")
