"""Values of every wrong kind for every option: one line and exit code 2, or they work."""

import contextlib
import copy
import math

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qsweep.base.config_files import config_folder
from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.search.settings import search_config
from qsweep.sweep.compose import plain, register_resolvers
from qsweep.sweep.config import describe, sweep_config, trial_config

_DELETED = object()
MLFLOW = "qsweep.tracking.mlflow.MLflowTracker"
VALUES = {
    "null": None,
    "list": [],
    "mapping": {},
    "text": "nonsense",
    "empty": "",
    "negative": -3,
    "nan": math.nan,
    "infinity": math.inf,
    "huge": 10**30,
    "float": 1.5,
    "true": True,
    "nested": {"a": {"b": [1, {"c": None}]}},
    "list of all": [None, 1, "x", {}, []],
    "NUL": "a\0b",
    "deleted": _DELETED,
}


def composed(*overrides):
    register_resolvers()
    with initialize_config_dir(str(config_folder("conf")), version_base="1.3"):
        return plain(compose("config", list(overrides)), OmegaConf)


@pytest.fixture(scope="module")
def configs():
    choices = ("gptq", "gptaq", "awq", "gguf", "rtn", "autoround")
    found = [composed(f"quant={name}") for name in choices]
    found.append(composed("+search=default", "corpus=file", "corpus.path=x", "model=qwen3-0.6b"))
    return found


def places(values, path=()):
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def changed(config, path, value):
    config = copy.deepcopy(config)
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    if value is _DELETED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = copy.deepcopy(value)
    return config


def attempt(config):
    try:
        trial = trial_config(config)
        sweep_config(config)
        search_config(config.get("search") or {})
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1, error
        return
    # It works: then also for what comes next.
    assert "\n" not in f"{trial.name} {describe(trial.quant)} {trial.primary}"
    with contextlib.suppress(IncompatibleTrial):
        assert isinstance(trial.quant.options(), dict)


@pytest.mark.parametrize("kind", VALUES)
def test_no_value_of_any_option_is_a_traceback(configs, kind):
    for config in configs:
        for path in list(places(config)):
            attempt(changed(config, path, VALUES[kind]))


@pytest.mark.parametrize("kind", VALUES)
def test_no_value_beside_the_known_options_is_a_traceback(configs, kind):
    if VALUES[kind] is _DELETED:
        return
    for config in configs[:1] + configs[-1:]:
        for path in [(p[0],) for p in places(config) if len(p) == 1]:
            if isinstance(config[path[0]], dict):
                attempt(changed(config, (*path, "unheard_of"), VALUES[kind]))
                attempt(changed(config, (*path, 5), VALUES[kind]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"outputs_dir": None}, "outputs_dir=None: a folder"),
        ({"outputs_dir": "~nobody_of_that_name/x"}, "outputs_dir=~nobody_of_that_name/x: "),
        ({"timeout_s": math.nan}, "timeout_s=nan: must be a finite number"),
        ({"timeout_s": math.inf}, "timeout_s=inf: must be a finite number"),
        ({"quant": None}, "quant: nothing is chosen; choose with quant=NAME"),
        ({"model": 5}, "model: 5 is no choice"),
        ({"tracking": _DELETED}, "tracking: nothing is chosen"),
        ({"sweep": {}}, "sweep={}: a name is a text"),
        ({"n_jobs": 1.5}, "n_jobs"),
        ({"model": {"name": "a\nb", "path": "/x"}}, r"model.name='a\nb': contains a character"),
        ({"model": {"name": " ", "path": "/x"}}, "model.name=' ': the name is empty"),
        (
            {"tracking": {"_target_": MLFLOW, "experiment": "a\u2028"}},
            r"tracking.experiment='a\u2028': contains",
        ),
        ({"corpus": {"a\tb": {"source": "python"}}}, r"name of a text='a\tb': contains"),
        ({"outputs_dir": "/tmp/a\udcff"}, "outputs_dir='/tmp/a\\udcff': is no name in UTF-8"),
    ],
)
def test_what_is_wrong_is_named(configs, overrides, message):
    config = configs[0]
    for name, value in overrides.items():
        config = changed(config, (name,), value)
    with pytest.raises(ConfigError) as caught:
        trial_config(config)
        sweep_config(config)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["n_jobs", "timeout_s", "sweep", "device", "outputs_dir"])
def test_what_has_a_usual_value_may_be_left_out(configs, name):
    config = changed(configs[0], (name,), _DELETED)
    assert trial_config(config).device == "auto"
    assert sweep_config(config).outputs_dir.name
