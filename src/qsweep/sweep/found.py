"""From what a configuration says of artifacts that exist to the trials that measure them.

A pattern, or a repository with several files, is a trial for each; the model that one is compared
with is the one that was chosen, else the one that the artifact itself names.
"""

import copy
import functools
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qsweep.base.config_files import choice_values
from qsweep.base.errors import AnotherModel, ConfigError, QsweepError
from qsweep.base.schema import build
from qsweep.base.secrets import hidden
from qsweep.base.store import Store
from qsweep.formats.artifact_files import find_place, find_places, is_pattern
from qsweep.models.hub_artifacts import fetch_artifacts
from qsweep.models.tiny import MODEL_DIR
from qsweep.quantizers.artifact import ExistingArtifact
from qsweep.sweep.compose import Composed
from qsweep.sweep.config import TrialConfig

TARGET = f"{ExistingArtifact.__module__}.{ExistingArtifact.__qualname__}"
# What made an artifact, and is only read of it.
_MAKERS = ("format", "container", "bits", "group_size", "desc_act", "sym")


def find_artifacts(configs: Sequence[Composed], typed: Collection[str] = ()) -> list[Composed]:
    """Configurations of which each that measures what exists names one artifact, by its path.

    Args:
        configs: Resolved ones.
        typed: Names of the options that the command line gives to all of them.

    Raises:
        ConfigError: There is no such file, or nothing that a pattern matches.
        QsweepError: A hub does not give it.
    """
    return [one for config in configs for one in _found(config, {*typed, *config.chosen})]


def identified(trial: TrialConfig, store: Store) -> TrialConfig:
    """A trial of an artifact that exists with the hash of its content, which its process checks."""
    if not isinstance(trial.quant, ExistingArtifact) or trial.quant.content is not None:
        return trial
    quant = trial.quant.identified(store)
    values = {**trial.resolved["quant"], "content": quant.content}
    return replace(trial, quant=quant, resolved={**trial.resolved, "quant": values})


def expand_pattern(name: str, values: Sequence[str]) -> tuple[str, ...]:
    """The values of a parameter; of ``quant.path`` all that a pattern among them matches."""
    if name.lstrip("+") != "quant.path":
        return tuple(values)
    from qsweep.sweep.overrides import quote, unquoted

    found: dict[str, None] = {}
    for value in values:
        path = unquoted(value)
        if is_pattern(path):
            found.update(dict.fromkeys(quote(str(place)) for place in find_places(path)))
        else:
            found.setdefault(value)
    return tuple(found)


def _found(config: Composed, chosen: Collection[str]) -> Iterator[Composed]:
    values = config.get("quant")
    if not isinstance(values, Mapping) or values.get("_target_") != TARGET:
        yield config
        return
    for name in _MAKERS:
        if name in chosen:
            _note(f"{name}: is what an artifact was made by, and only read of one that exists")
    quant = build(ExistingArtifact, {k: v for k, v in values.items() if k != "_target_"}, "quant")
    for found in _places(quant):
        yield _with_model(_with_quant(config, found), found, chosen)


def _places(quant: ExistingArtifact) -> list[ExistingArtifact]:
    if quant.path is None:
        fetched = fetch_artifacts(str(quant.repo), quant.file, quant.revision)
        places = list(dict.fromkeys(find_place(path) for path in fetched))
        named = quant.file is not None
        return [
            replace(quant, path=str(place), file=place.name if named else None) for place in places
        ]
    if quant.file is not None and quant.repo is None:
        raise ConfigError("quant.file: is a file of a hub's repository; a path is quant.path=FILE")
    if is_pattern(quant.path):
        return [replace(quant, path=str(place)) for place in find_places(quant.path)]
    return [replace(quant, path=str(find_place(quant.path)))]


def _with_quant(config: Composed, found: ExistingArtifact) -> Composed:
    own = Composed(copy.deepcopy(dict(config)))
    own.written, own.chosen = copy.deepcopy(config.written), config.chosen
    values = {"path": found.path, "file": found.file}
    typed = config["quant"].get("path")
    own["quant"] = {**config["quant"], **values}
    if typed is None or is_pattern(typed):  # else it is written down as it was typed
        own.written["quant"] = {**dict(own.written.get("quant") or {}), **values}
    return own


def _with_model(config: Composed, found: ExistingArtifact, chosen: Collection[str]) -> Composed:
    """The configuration with the model that the artifact names, where nobody chose one."""
    model = config.get("model")
    is_default = isinstance(model, Mapping) and model.get("path") == str(MODEL_DIR)
    typed = any(name == "model" or name.startswith("model.") for name in chosen)
    if typed or not is_default:
        return config
    named = found.provenance.base_models
    repos = {str(values.get("repo") or "").lower(): name for name, values in _models()}
    for repo in named:
        if (name := repos.get(repo.lower())) is not None:
            _note(f"model={name}: as {found.label} says that it was made of {repo}")
            values = dict(_models())[name]
            config["model"] = dict(values)
            config.written["model"] = dict(values)
            return config
    return config


@functools.cache
def _models() -> tuple[tuple[str, dict[str, Any]], ...]:
    return tuple(choice_values("model"))


@functools.cache
def _note(line: str) -> None:
    # Once, however many trials it concerns.
    print(f"note: {hidden(line)}", file=sys.stderr, flush=True)


def advice(trial: TrialConfig, error: QsweepError) -> str:
    """What to give in place of the default model, where an artifact turned out to be another's."""
    if not isinstance(error, AnotherModel) or trial.model.path != str(MODEL_DIR):
        return ""
    return "; give the model that it was made of, with model=NAME or model.path=DIR"
