"""From ``quant=artifact`` on a command line or in a file to trials: patterns, models, keys."""

import shutil

import pytest
import yaml

from helpers.artifacts import edited, rounded
from qsweep.api.composition import compose_trials
from qsweep.base.errors import ConfigError
from qsweep.base.store import Store
from qsweep.search.batch import one_batch
from qsweep.search.sweep_file import read_space
from qsweep.sweep.config import trial_config
from qsweep.sweep.found import identified
from qsweep.sweep.plan import make_plan
from qsweep.sweep.planning import plan_all

CARD = "---\nbase_model: Qwen/Qwen3-0.6B\nquantized_by: somebody\n---\n"


@pytest.fixture(scope="module")
def models(tiny_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = rounded(tiny_model("llama"), root / "b")
    shutil.copytree(made, root / "a ü")
    return root


@pytest.fixture
def base(tiny_model):
    return tiny_model("llama")


def configs(*words):
    return one_batch(compose_trials(["quant=artifact", "corpus=file", *words]), words)


def test_each_value_and_each_match_is_a_configuration(models, monkeypatch):
    found = [str(models / "a ü"), str(models / "b")]
    assert [c["quant"]["path"] for c in configs(f"quant.path={models}/*")] == found
    both = configs(f"quant.path='{models}/a ü',{models}/b")
    assert [c["quant"]["path"] for c in both] == found
    monkeypatch.chdir(models)
    assert [c["quant"]["path"] for c in configs("quant.path=b,./b,**")][0] == found[1]
    assert both[0].written["quant"]["path"] == found[0]


def test_a_pattern_is_searched_match_by_match(models):
    space = read_space({"quant": "artifact"}, {}, [f"quant.path={models}/*"])
    (paths,) = (p.values for p in space.parameters if p.name == "quant.path")
    assert paths == (f"'{models}/a ü'", f"'{models}/b'")


def test_a_sweep_file_may_have_patterns_and_rows(models, tmp_path):
    from qsweep.search.sweep_file import read_trials

    when = yaml.safe_load(f"{{quant=artifact: {{quant.path: '{models}/*'}}}}")
    trials = read_trials({"quant": "rtn,artifact"}, when, None, [])
    assert [len(trial) for trial in trials] == [1, 2, 2]
    rows = read_trials(None, None, [f"quant=artifact quant.path={models}/*"], [])
    assert len(one_batch(compose_trials(rows[0]))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quant.path=/none/at/all.gguf"], "quant.path=/none/at/all.gguf: no such file"),
        (["quant.path=ROOT/*.gguf"], "nothing matches; in ROOT there are a ü, b"),
        ([], "quant=artifact: give quant.path=FILE|DIR, or quant.repo=ORG/NAME"),
        (["quant.path=ROOT/b", "quant.file=x"], "quant.file: is a file of a hub's repository"),
        (["quant.repo=no good", "quant.file=x"], "quant.repo=no good: is no repository's name"),
    ],
)
def test_what_is_not_there_is_one_line_and_nothing_runs(models, words, message):
    with pytest.raises(ConfigError) as caught:
        configs(*(word.replace("ROOT", str(models)) for word in words))
    assert message.replace("ROOT", str(models)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_model_is_the_one_chosen_else_the_one_that_the_artifact_names(models, tmp_path, capsys):
    own = tmp_path / "own"
    shutil.copytree(models / "b", own)
    (own / "README.md").write_text(CARD)
    (named,) = configs(f"quant.path={own}")
    assert named["model"]["repo"] == "Qwen/Qwen3-0.6B" and named["model"]["name"] == "qwen3-0.6b"
    assert "note: model=qwen3-0.6b: as gptq 4-bit g64 · own says" in capsys.readouterr().err
    for choice in ("model=pocket", "model.name=mine", "model=smollm2-135m"):
        assert configs(f"quant.path={own}", choice)[0]["model"].get("repo") != "Qwen/Qwen3-0.6B"
    edited(own, "config.json", lambda content: content | {"_name_or_path": "Qwen/Qwen3-8B"})
    (own / "README.md").unlink()
    assert configs(f"quant.path={own}")[0]["model"]["name"] == "qwen3-8b"
    assert configs(f"quant.path={models}/b")[0]["model"]["name"] == "pocket"


def test_bits_given_beside_it_are_ignored_with_a_word(models, capsys):
    configs(f"quant.path={models}/b", "bits=3")
    assert "note: bits: is what an artifact was made by, and only read" in capsys.readouterr().err


def planned(configs, base, store):
    trials = [identified(trial_config(config), store) for config in configs]
    return trials, *plan_all(trials, store, {})


def test_plans_have_the_contents_keys_and_refusals_their_reasons(
    models, base, tmp_path, pocket_dir
):
    text = tmp_path / "text.txt"
    text.write_text("A sentence that is measured. " * 200)
    store = Store(tmp_path / "store")
    other = tmp_path / "z"
    shutil.copytree(models / "b", other)
    edited(other, "config.json", lambda content: content | {"rms_norm_eps": 0.1})
    words = [f"corpus.path={text}", "eval.context=64", "device=cpu"]
    paths = f"quant.path={models}/*,{other}"
    trials, plans, refused = planned(configs(paths, *words, f"model.path={base}"), base, store)
    # The reference, and the two copies as one.
    assert len(plans) == 2 and len({trial.quant.content for trial in trials}) == 2
    (no,) = refused
    assert (no.status, "norm epsilon 0.1 instead of 1e-06" in no.reason) == ("skipped", True)
    # A job makes the same plan of the configuration that it is handed.
    plan = next(plan for plan in plans.values() if not plan.is_reference)
    again = make_plan(trial_config(plan.trial.resolved), plan.setting)
    assert again.key == plan.key and again.artifact["options"]["content"] == trials[0].quant.content
    # Nobody chose a model, and the default is none of its: what to give is said.
    _, plans, (no, *_) = planned(configs(f"quant.path={models}/b", *words), base, store)
    assert no.reason.endswith(
        "give the model that it was made of, with model=NAME or model.path=DIR"
    )
