"""Configuration files: the groups and choices that come with qsweep, and options of recorded ones."""

from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.base.secrets import is_hidden

# Where other packages offer choices of a configuration group (:mod:`qsweep.base.plugins`).
ENTRY_POINT_GROUPS = {
    "quant": "qsweep.quantizers",
    "format": "qsweep.number_formats",
    "corpus": "qsweep.corpora",
    "calibration": "qsweep.corpora",
    "launch": "qsweep.launchers",
    "tracking": "qsweep.trackers",
}


def config_folder(name: str) -> Path:
    """``conf`` or ``sweeps``: inside the package when installed, beside ``src`` in a checkout."""
    package = Path(__file__).parents[1]
    for place in (package / name, package.parents[1] / name):
        if place.is_dir():
            return place
    raise ConfigError(f"{name}/ is missing from the installation; install qsweep again")


def group_choices() -> dict[str, list[str]]:
    """The configuration groups that come with qsweep, and the choices of each."""
    places = [p for p in sorted(config_folder("conf").iterdir()) if p.is_dir()]
    return {p.name: sorted(f.stem for f in p.glob("*.yaml")) for p in places}


def options_by_choice(group: str) -> list[tuple[str, list[str]]]:
    """The choices of a configuration group with the names of their options."""
    return [(name, [o for o in values if o != "defaults"]) for name, values in choice_values(group)]


def choice_values(group: str) -> list[tuple[str, dict[str, Any]]]:
    """The choices of a configuration group with what stands in their files."""
    from omegaconf import DictConfig, OmegaConf

    files = sorted((config_folder("conf") / group).glob("*.yaml")) if group else []
    found = [(file.stem, OmegaConf.load(file)) for file in files]
    return [
        (name, {str(k): v for k, v in OmegaConf.to_container(config).items()})  # type: ignore[union-attr]
        for name, config in found
        if isinstance(config, DictConfig)
    ]


def resolve_recorded(written: Any, option: str) -> Any:
    """An option (``model.path``) of a configuration as it was written down, resolved here and now.

    None where there is none, where the environment no longer has what it names, and where a
    password was left out.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        value = OmegaConf.select(OmegaConf.create(written), option)
    except (OmegaConfBaseException, ValueError):
        return None
    return None if is_hidden(str(value)) else value
