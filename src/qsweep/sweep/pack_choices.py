"""What a composed configuration says of a model that a reference pack stands for."""

from collections.abc import Collection, Mapping
from typing import Any

from qsweep.base.config_files import config_folder
from qsweep.base.errors import ConfigError
from qsweep.base.names import absolute_path
from qsweep.evaluate.packs.header import PackHeader, open_pack
from qsweep.sweep.compose import Composed


def with_pack(config: Composed, given: Collection[str]) -> Composed:
    """The configuration of a trial whose model is a pack: named by that, measured on what it has.

    Where nobody chose corpora or presets, the pack's own take the place of the defaults.

    Args:
        config: As it was composed; without ``model.pack`` it stays as it is.
        given: Names of the groups and options that somebody chose.

    Raises:
        ConfigError: The pack cannot be read, or a model is named beside it.
    """
    model = config.get("model")
    if not isinstance(model, Mapping) or model.get("pack") is None:
        return config
    if beside := sorted({"model", "model.path", "model.repo"}.intersection(given)):
        raise ConfigError(f"model.pack={model['pack']}: takes the place of {beside[0]}; give one")
    path = absolute_path(str(model["pack"]), "model.pack")
    header = open_pack(path).header
    changes = _changes(config, header, given)
    kept = {k: v for k, v in model.items() if k not in ("path", "repo", "revision", "hint")}
    name = model["name"] if "model.name" in given else header.model.name
    changes["model"] = {**kept, "name": name, "pack": str(path)}
    changed = Composed({**config, **changes})
    changed.written, changed.chosen = {**config.written, **changes}, config.chosen
    return changed


def _changes(
    config: Mapping[str, Any], header: PackHeader, given: Collection[str]
) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    corpora, evaluation = config.get("corpus"), config.get("eval")
    named = any(name.partition(".")[0] == "corpus" for name in given)
    if not named and isinstance(corpora, Mapping) and set(corpora) == set(_default_corpora()):
        changes["corpus"] = {
            name: {"source": "pack", "assistant_only": True}
            if name in header.conversations
            else {"source": "pack"}
            for name in header.corpora
        }
    usual = isinstance(evaluation, Mapping) and evaluation.get("presets") == ["paper"]
    if usual and header.presets and "eval.presets" not in given:
        changes["eval"] = {**config["eval"], "presets": header.presets}
    return changes


def _default_corpora() -> list[str]:
    from omegaconf import OmegaConf

    defaults: Any = OmegaConf.load(config_folder("conf") / "config.yaml").defaults
    chosen = next(one["corpus"] for one in defaults if "corpus" in one)
    return list(chosen)
