"""``seeds``: which draws it asks for, that they are those of ``seed``, and what it refuses."""

import pytest
from hydra import compose, initialize_config_dir

from helpers.configs import CONF
from qsweep.api.composition import compose_trials
from qsweep.api.words import as_overrides
from qsweep.base.errors import ConfigError
from qsweep.base.store import Store
from qsweep.search.batch import one_batch
from qsweep.sweep.compose import register_resolvers, resolved
from qsweep.sweep.config import SWEEP_WIDE, own_config, trial_config
from qsweep.sweep.planning import keys_of, plan_all
from qsweep.sweep.seeds import seeds_of

FILES = ["corpus=file", "calibration=file", "device=cpu"]


@pytest.fixture
def words(tmp_path):
    (tmp_path / "a.txt").write_text("A line of text. " * 200)
    return [*FILES, *(f"{group}.path={tmp_path / 'a.txt'}" for group in ("corpus", "calibration"))]


def batch(*words):
    return one_batch(compose_trials(words), words)


@pytest.fixture
def planned(tmp_path, words):
    store = Store(tmp_path / "store")

    def keys(*more):
        trials = [trial_config(config) for config in batch(*words, *more)]
        settings = {}
        plans, refused = plan_all(trials, store, settings)
        own = keys_of(trials, refused, settings)
        return own, [key for key, plan in plans.items() if not plan.is_reference]

    return keys


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        (["seeds=3"], [0, 1, 2]),
        (["seeds=2", "seed=5"], [5, 6]),
        (["seeds=[0,3,7]"], [0, 3, 7]),
        (["seeds=1"], [0]),
    ],
)
def test_a_number_counts_from_seed_and_a_list_names_them(words, seeds):
    found = batch(*words)
    assert [config["seed"] for config in found] == seeds
    assert [config["calibration"]["seed"] for config in found] == seeds
    assert all(config["seeds"] == config.written["seeds"] == seeds for config in found)


def test_they_are_counted_in_hydras_own_configuration_too():
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.2"):
        found = [compose("config", ["quant=gptq", *more]) for more in ([], ["seeds=2"])]
    assert [len(config.draws) for config in resolved(found)] == [0, 2]
    assert resolved(already := resolved(found)) == already


def test_without_it_nothing_is_other_than_it_was():
    (config,) = batch()
    assert config["seeds"] is None and config["seed"] == config["calibration"]["seed"] == 0


def test_quantizers_of_their_own_seed_follow_too():
    assert [config["quant"]["seed"] for config in batch("quant=autoround", "seeds=2")] == [0, 1]


def test_a_draw_is_the_trial_that_seed_makes(planned):
    asked, _ = planned("quant=gptq", "seeds=[0,3]")
    assert asked == [planned("quant=gptq", f"seed={seed}")[0][0] for seed in (0, 3)]
    assert asked[0] == planned("quant=gptq")[0][0]


def test_what_rests_on_no_draw_is_one_trial(planned):
    for quant in (["quant=rtn"], ["quant=gguf"]):
        asked, plans = planned(*quant, "seeds=4")
        assert len(asked) == 4 and len(set(asked)) == len(plans) == 1
    assert len(planned("quant=gguf", "quant.imatrix=true", "seeds=4")[1]) == 4


def test_the_trials_process_is_told_of_one_draw():
    assert "seeds" in SWEEP_WIDE
    assert "seeds" not in own_config(trial_config(batch("seeds=2")[0]))


def test_a_list_of_python_is_one_value():
    assert list(as_overrides({"seeds": [0, 3, 7], "bits": [3, 4]})) == ["seeds=[0,3,7]", "bits=3,4"]
    assert list(as_overrides({"seeds": (0, 3)})) == ["seeds=[0,3]"]


@pytest.mark.parametrize("bad", [0, -1, "x", True, 2.5, [], [1, "x"], [0.5], {}])
def test_what_is_no_number_of_draws(bad):
    with pytest.raises(ConfigError, match=r"a number of draws from 1, or a list of seeds"):
        seeds_of(bad)
    assert seeds_of([0, 3, 7]) == [0, 3, 7]  # as the line advises


@pytest.mark.parametrize(
    ("words", "line", "instead"),
    [
        (["seeds=0"], "seeds=0: a number of draws from 1", ["seeds=1"]),
        (["seeds=x"], "seeds=x: a number of draws from 1", ["seeds=[0,3,7]"]),
        (["seeds=[1,1]"], "seeds=[1, 1]: 1 is there twice; name each seed once", ["seeds=[1]"]),
        (["seeds=2", "seed=1,2"], "seed: is varied, and seeds draws several of each", ["seeds=2"]),
        (["seeds=2", "seed=1,2"], "leave one of them out", ["seed=1,2"]),
        (["seeds=2,4"], "seeds: a sweep has one value of it", ["seeds=4"]),
        (["seeds=[1,2]", "seed=3"], "seed: seeds is a list of all of them", ["seeds=[1,2]"]),
        (["seeds=2", "calibration.seed=3"], "calibration.seed: seeds says what is drawn", ["seeds=2"]),
        (["seeds=2", "eval.until='kld ±0.1'"], "eval.until: draws would stop at", ["seeds=2"]),
        (["seeds=2", "seed=x"], "seed=x: a whole number", ["seeds=2"]),
        (["seeds=20260101"], "1000 draws are the most; seed=20260101 is one", ["seed=20260101"]),
        (["seeds=3", "seed=-1"], "seeds: -1 draws what 1 does; give seeds from 0", ["seeds=3"]),
        (["seeds=[-7,0,7]"], "seeds: -7 draws what 7 does; give seeds from 0", ["seeds=[0,7]"]),
    ],
)  # fmt: skip
def test_what_is_refused_says_what_to_do_instead(words, line, instead):
    with pytest.raises(ConfigError) as refused:
        batch(*words)
    assert line in str(refused.value) and "\n" not in str(refused.value)
    assert batch(*instead)
