"""The configuration files that come with qsweep: groups, their choices, and what options these have."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError


def folder(name: str) -> Path:
    """``conf`` or ``sweeps``: inside the package when installed, beside ``src`` in a checkout."""
    package = Path(__file__).parents[1]
    for place in (package / name, package.parents[1] / name):
        if place.is_dir():
            return place
    raise ConfigError(f"{name}/ is missing from the installation; install qsweep again")


def choices() -> dict[str, list[str]]:
    """The configuration groups that come with qsweep, and the choices of each."""
    places = [p for p in sorted(folder("conf").iterdir()) if p.is_dir()]
    return {p.name: sorted(f.stem for f in p.glob("*.yaml")) for p in places}


def known_options(key: str) -> list[str]:
    """Names of groups and options at the top, and of those in the group that a key is in."""
    from omegaconf import OmegaConf

    from qsweep.sweep.overrides import options_of

    names = [name for name in choices() if name != "hydra"]
    config = OmegaConf.load(folder("conf") / "config.yaml")
    names += [str(name) for name in config if name not in ("defaults", "hydra")]
    group = key.partition(".")[0]
    if group != key:
        names += [f"{group}.{name}" for _, options in options_by_choice(group) for name in options]
        names += [f"{group}.{name}" for name in options_of(group)]
    return sorted(set(names))


def chosen_quantizers(overrides: Sequence[str]) -> list[type]:
    """The classes of the quantizers that a command line chooses, or of the default one."""
    from qsweep.sweep.overrides import quantizer_class

    given = dict(o.split("=", 1) for o in overrides if "=" in o)
    names = given.get("quant", "gptq").split(",")
    values = dict(_values_of("quant"))
    found = []
    for name in names:
        options = values.get(name.strip(), {})
        backend = given.get("quant.backend", options.get("backend"))
        cls = quantizer_class({**options, "backend": backend})
        if cls is None:
            return []
        found.append(cls)
    return found


def options_by_choice(group: str) -> list[tuple[str, list[str]]]:
    """The choices of a configuration group with the names of their options."""
    return [(name, [o for o in values if o != "defaults"]) for name, values in _values_of(group)]


def _values_of(group: str) -> list[tuple[str, dict[str, Any]]]:
    from omegaconf import DictConfig, OmegaConf

    files = sorted((folder("conf") / group).glob("*.yaml")) if group else []
    found = [(file.stem, OmegaConf.load(file)) for file in files]
    return [
        (name, {str(k): v for k, v in OmegaConf.to_container(config).items()})  # type: ignore[union-attr]
        for name, config in found
        if isinstance(config, DictConfig)
    ]
