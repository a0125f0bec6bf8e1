"""Composing many configurations as Hydra does, only faster."""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qsweep.base.secrets import hidden_tree
from qsweep.sweep.seeds import seeds_of, with_seeds


class Composed(dict[str, Any]):
    """A resolved configuration that remembers how it may be written down.

    In ``written`` what came from the environment is the interpolation that named it, and a literal
    password is ``***``.
    """

    written: dict[str, Any]
    chosen: frozenset[str] = frozenset()
    """Names of the groups and options that a command line, or a sweep file's space, set."""
    words: tuple[str, ...] = ()
    """The overrides that it was composed of, where somebody wants to give them again."""
    draws: "tuple[Composed, ...]" = ()
    """Itself with each of its ``seeds``; none where it has none."""


class Composer:
    """Turns lists of overrides into resolved configurations, plain mappings without Hydra's part.

    Hydra takes some 50 ms for each, nearly all of it for the defaults list. Only choices of groups
    change that list, so that one composition serves all that choose alike: values are then set on a
    copy of it, by Hydra's own code and with its errors.

    Args:
        loader: Hydra's configuration loader.
        master: the sweep's own configuration, whose Hydra overrides count for every trial.
    """

    def __init__(self, loader: Any, master: Any):
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self._loader, self._master = loader, master
        self._parser = OverridesParser.create()
        self._bases: dict[tuple[str, ...], Any] = {}
        self._groups: dict[str, bool] = {}

    def __call__(self, overrides: Sequence[str]) -> Composed:
        """One configuration. Raises HydraException or OmegaConfBaseException."""
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from omegaconf import OmegaConf

        choices: list[Any] = []
        values: list[Any] = []
        parsed = self._parser.parse_overrides(list(overrides))
        for override in parsed:
            (choices if self._is_choice(override) else values).append(override)
        config = copy.deepcopy(self._base(tuple(str(o.input_line) for o in choices)))
        for override in values:
            _add_if_known(override, config)
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        composed = plain(config, OmegaConf)
        composed.chosen = frozenset(str(one.key_or_group) for one in parsed)
        return composed

    def _is_choice(self, override: Any) -> bool:
        key = override.key_or_group
        if override.package is not None or override.is_hydra_override():
            return True
        if key not in self._groups:
            self._groups[key] = bool(self._loader.get_group_options(key))
        return self._groups[key]

    def _base(self, choices: tuple[str, ...]) -> Any:
        from omegaconf import open_dict

        if choices not in self._bases:
            config = self._loader.load_sweep_config(self._master, list(choices))
            with open_dict(config):
                config.pop("hydra", None)
            self._bases[choices] = config
        return self._bases[choices]


def _add_if_known(override: Any, config: Any) -> None:
    """Let an option be set that no file names, where the typed configuration has it."""
    from hydra.core.override_parser.types import OverrideType
    from omegaconf import OmegaConf

    from qsweep.sweep.overrides import is_option, quantizer_class

    key = override.key_or_group
    if override.type != OverrideType.CHANGE or OmegaConf.select(config, key) is not None:
        return
    quant = OmegaConf.select(config, "quant")
    cls = quantizer_class(quant) if OmegaConf.is_dict(quant) else None
    if is_option(key, [] if cls is None else [cls]):
        override.type = OverrideType.FORCE_ADD


def resolved(configs: Iterable[Any]) -> list[Composed]:
    """Configurations, Hydra's own or resolved already, as resolved ones. Raises as :func:`plain`."""
    from omegaconf import OmegaConf

    return [c if isinstance(c, Composed) else plain(c, OmegaConf) for c in configs]


def plain(config: Any, omegaconf: Any) -> Composed:
    """A configuration as a mapping of plain values, with everything in it resolved.

    Raises:
        ConfigError: Its ``seeds`` are none.
    """
    composed = _plain(config, omegaconf)
    seeds = seeds_of(composed.get("seeds"), composed.get("seed", 0))
    composed.draws = tuple(_plain(own, omegaconf) for own in with_seeds(config, seeds))
    return composed


def _plain(config: Any, omegaconf: Any) -> Composed:
    with _reads_of_environment(omegaconf) as reads:
        resolved = omegaconf.to_container(config, resolve=True, throw_on_missing=True)
        composed = Composed({str(key): value for key, value in resolved.items()})
        composed.written = _written(config, omegaconf, reads) if reads else hidden_tree(composed)
    return composed


def _written(config: Any, omegaconf: Any, reads: list[str]) -> Any:
    """Like ``to_container``, but what rests on the environment is left as it stands."""
    raw = omegaconf.to_container(config, resolve=False)

    def entry(key: Any) -> Any:
        before = len(reads)
        value = config[key]
        if not omegaconf.is_interpolation(config, key):
            return _written(value, omegaconf, reads) if omegaconf.is_config(value) else value
        if omegaconf.is_config(value):
            value = omegaconf.to_container(value, resolve=True)
        return raw[key] if len(reads) > before else value

    if omegaconf.is_list(config):
        return hidden_tree([entry(place) for place in range(len(config))])
    return hidden_tree({str(key): entry(key) for key in config})


@contextlib.contextmanager
def _reads_of_environment(omegaconf: Any) -> Iterator[list[str]]:
    """The names of the variables that ``${oc.env:NAME}`` looks up meanwhile."""
    from omegaconf.resolvers import oc

    reads: list[str] = []

    def env(name: str, *default: Any) -> Any:
        reads.append(name)
        return oc.env(name, *default)

    omegaconf.register_new_resolver("oc.env", env, replace=True)
    try:
        yield reads
    finally:
        omegaconf.register_new_resolver("oc.env", oc.env, replace=True)


def register_resolvers() -> None:
    """Teach OmegaConf the interpolations that qsweep's files use."""
    from omegaconf import OmegaConf

    from qsweep.models.tiny import MODEL_DIR
    from qsweep.sweep.blends import most as largest

    def model_name(path: str) -> str:
        same = Path(path).expanduser().absolute() == MODEL_DIR
        return "pocket" if same else Path(path).absolute().name

    def hydra_dir(outputs: Any) -> str:
        # Hydra makes this folder before anybody has looked at the configuration.
        return f"{outputs}/.hydra" if isinstance(outputs, str) and outputs.strip() else "."

    def most(option: str, *, _parent_: Any) -> Any:
        return largest(option, _parent_)

    OmegaConf.register_new_resolver("qsweep.most", most, replace=True)
    OmegaConf.register_new_resolver("qsweep.hydra_dir", hydra_dir, replace=True)
    OmegaConf.register_new_resolver("qsweep.pocket", lambda: str(MODEL_DIR), replace=True)
    OmegaConf.register_new_resolver("qsweep.name", model_name, replace=True)
    OmegaConf.register_new_resolver("qsweep.basename", lambda p: Path(p).name, replace=True)
