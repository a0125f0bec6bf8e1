"""How a search is made: the options of the group ``search``, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qsweep.base.errors import ConfigError
from qsweep.base.schema import build
from qsweep.formats.hardware import Card, find_card

Sampler = Literal["tpe", "nsga2", "nsga3", "gp", "random", "brute_force"]
# What a calibrated quantizer keeps at least of the proxy's loss of log-perplexity. The AWQ paper's
# tables leave 0.5 at 4 bits and 0.67 at 3 of rounding's loss; over the embedded model's grid, first
# windows only, the least was 0.175 of rounding's and 0.44 of the native proxy's.
KEEPS = {"rtn": 0.15, "native": 0.4}


@dataclass(frozen=True)
class SearchConfig:
    """One search; ``conf/search/default.yaml`` says what each option is for."""

    objective: tuple[str, ...] = ("size_gb", "quality")
    constraints: tuple[str, ...] = ()
    serving: bool = True
    hardware: str | None = None
    trials: int | None = None
    batch: int | Literal["auto"] = "auto"
    enumerate_below: int = 150
    sampler: Sampler = "tpe"
    sampler_options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    enqueue: tuple[str, ...] = ()
    rungs: tuple[Literal["proxy", "few"], ...] = ("proxy", "few")
    proxy: Literal["rtn", "native"] = "rtn"
    proxy_keeps: float | Literal["auto"] = "auto"
    few_windows: int = 8
    storage: str | None = None
    study: str | None = None
    fidelity: Literal["full", "few", "proxy"] = "full"

    def __post_init__(self) -> None:
        for name in ("trials", "batch", "few_windows"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"search.{name}={value}: must be at least 1")
        if self.hardware is not None:
            find_card(self.hardware, "search.hardware")
        if not self.objective:
            raise ConfigError("search.objective: name at least one metric")
        if self.proxy_keeps != "auto" and not 0 <= self.proxy_keeps <= 1:
            raise ConfigError(
                f"search.proxy_keeps={self.proxy_keeps}: a share from 0 to 1, or auto"
            )

    @property
    def card(self) -> Card | None:
        """What the answer is to run on; None: no matter."""
        return None if self.hardware is None else find_card(self.hardware, "search.hardware")

    @property
    def keeps(self) -> float:
        """The share of the proxy's loss that is sure to remain."""
        return KEEPS[self.proxy] if self.proxy_keeps == "auto" else self.proxy_keeps


def search_config(values: Mapping[str, Any]) -> SearchConfig:
    """The settings in a composed configuration's ``search``. Raises ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"search: {values!r} is no choice; choose with search=NAME")
    given = dict(values)
    for name in ("objective", "constraints", "enqueue"):
        if isinstance(given.get(name), str):
            given[name] = [given[name]]
    return build(SearchConfig, given, "search")
