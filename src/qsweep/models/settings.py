"""Which model: what the configuration group ``model`` says."""

from dataclasses import dataclass
from typing import Literal

from qsweep.base.errors import ConfigError
from qsweep.base.names import absolute_path, check_label
from qsweep.models.room import Stream

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ModelConfig:
    """Where a model comes from: a directory (``path``), else a hub repository (``repo``).

    Or only what was measured on it: a reference pack (``pack``), which takes their place.
    ``hint`` says what else there is where no hub can be reached. ``stream`` tells whether the weights
    of a decoder layer are read only while it runs; ``auto``: of a model that does not fit into memory.
    """

    name: str
    path: str | None = None
    repo: str | None = None
    revision: str = "main"
    hint: str | None = None
    dtype: DType = "auto"
    device_map: str | None = None
    trust_remote_code: bool = False
    pack: str | None = None
    stream: Stream = "auto"

    def __post_init__(self):
        check_label(self.name, "model.name")
        if self.path is None and self.repo is None and self.pack is None:
            raise ConfigError(f"model {self.name!r}: give model.path or model.repo")
        for option, place in (("path", self.path), ("pack", self.pack)):
            if place is not None:
                absolute_path(place, f"model.{option}")
        if self.stream is True and self.device_map is not None:
            raise ConfigError(
                "model.stream=true holds one layer at a time on one device, model.device_map spreads "
                "all of them over several; leave one of the two out"
            )
