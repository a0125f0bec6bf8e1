"""Composed configurations."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qsweep.sweep.compose import register_resolvers


def composed(*overrides, name="config"):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.2"):
        config = compose(name, [o for o in overrides])
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


CONF = Path(__file__).resolve().parents[2] / "conf"
