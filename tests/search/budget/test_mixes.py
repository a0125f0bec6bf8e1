"""Mixes as points of a search, on the embedded model."""

import csv
import shutil

import optuna
import pytest

from helpers.sweeps import run_here
from qsweep.base.errors import IncompatibleTrial, QsweepError
from qsweep.quantizers.rules_file import read_file
from qsweep.search.budget.mixes import Mixes, overrides_with
from qsweep.search.space import Mix, Parameter, Space, mix_key, mixed_bits, overrides_of
from qsweep.search.storage import open_storage
from qsweep.sweep.overrides import quote, unquoted

SMALL = [
    *("--config-name=pareto", "sweep=t", "tracking=none", "quant=rtn", "format=int"),
    *("bits=2,3.5,4", "group_size=64", "corpus=[python_docs]", "eval.max_windows=8"),
    *("search.few_windows=2", "search.rungs=[few]", "search.serving=false"),
]


def search(outputs, *arguments):
    return run_here([*SMALL, f"outputs_dir={quote(str(outputs))}", *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    # Such a path is in every override that names a file.
    outputs = tmp_path_factory.mktemp("outputs") / "par (1), {x}"
    result = search(outputs)
    assert result.returncode == 0, result.stdout + result.stderr
    return outputs, result


def trials(outputs):
    storage = open_storage(None, outputs / "sweeps/t")
    return optuna.load_study(study_name="t", storage=storage).trials


@pytest.mark.slow
def test_a_mix_is_a_trial_of_the_study_and_the_last(finished):
    outputs, _ = finished
    bits = [t.user_attrs["params"]["bits"] for t in trials(outputs)]
    assert sorted(bits[:-1]) == ["2", "4"] and bits[-1] == "3.5"
    # Distributions are those of the whole space from the first trial on.
    choices = {d.choices for t in trials(outputs) for d in t.distributions.values()}
    assert choices == {("2", "3.5", "4")}


def test_it_lies_between_the_uniform_ones(finished):
    outputs, _ = finished
    with (outputs / "sweeps/t/results.csv").open(encoding="utf-8") as file:
        rows = {float(r["bpw"]): float(r["kld"]) for r in csv.DictReader(file) if r["bpw"]}
    two, mixed, four = sorted(bpw for bpw in rows if bpw < 16)
    assert 3.3 < mixed <= 3.5
    assert rows[two] > 2 * rows[mixed] > 2 * rows[four]


def test_the_same_search_again_makes_nothing_and_still_tells_how_a_mix_is_made(finished):
    outputs, _ = finished
    page = (outputs / "sweeps/t/answer.md").read_text()
    assert "`qsweep quant=rtn" in page and "hydra.mode" not in page
    (file,) = (outputs / "sweeps/t/mixes").glob("*.yaml")
    assert file.name in page
    rules = read_file(str(file))
    # What the mix was chosen by is gone, and so are its rules.
    (kept,) = outputs.rglob("sensitivities")
    shutil.rmtree(kept)
    shutil.rmtree(file.parent)
    again = search(outputs)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "[1/" not in again.stderr and not kept.exists()
    assert len(trials(outputs)) == 3
    assert (outputs / "sweeps/t/answer.md").read_text().count(file.name) == page.count(file.name)
    assert read_file(str(file)) == rules


def test_a_family_that_failed_is_not_tried_again():
    tried = []

    def compose(overrides):
        tried.append(overrides)
        raise QsweepError("budget: no space left on its disk")

    space = Space(
        (
            Parameter("quant", ("gptq", "rtn")),
            Parameter("bits", ("2", "2.5", "3.5")),
            Parameter("seed", ("1",)),
        )
    )
    mixes = Mixes(None, space, compose, lambda quant, cached: "")
    for params in space.combinations():
        if mixed_bits(params) is not None:
            with pytest.raises(IncompatibleTrial) as caught:
                mixes.find(params)
            line = f"no mixes of quant={params['quant']}: no space left on its disk"
            assert str(caught.value) == line and line in mixes.lines
    assert tried == [["quant=gptq", "bits=2", "seed=1"], ["quant=rtn", "bits=2", "seed=1"]]
    assert len(mixes.lines) == 2


@pytest.mark.parametrize("name", ["a b, (1) {x}'s", "plain"])
def test_what_a_mix_is_composed_of(tmp_path, name):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    mix = Mix("gptq-3.5", {"quant": "gptq", "+quant.rules": "old"}, ("*.a=bits:2", "é.[kq]*=keep"))
    params = overrides_with(mix, tmp_path / name)
    assert list(params) == ["quant", "++quant.rules"]
    parsed = OverridesParser.create().parse_overrides(overrides_of(params))
    assert not parsed[1].is_sweep_override()
    assert read_file(unquoted(params["++quant.rules"])) == list(mix.rules)
    assert overrides_with(Mix("", {"bits": "3"}, ()), tmp_path) == {"bits": "3"}


@pytest.mark.parametrize(
    ("params", "bits"),
    [
        ({"bits": "3"}, None),
        ({"bits": "3.5"}, 3.5),
        ({"quant.type": "Q4_K_M"}, None),
        ({"quant.type": "4.25"}, 4.25),
        ({"bits": "-3.5"}, None),
        ({}, None),
    ],
)
def test_which_combinations_are_mixes(params, bits):
    assert mixed_bits(params) == bits


def test_a_group_size_beside_a_mix_says_nothing():
    one, other, third = (
        mix_key({"quant": quant, "bits": "3.5", "group_size": group})
        for quant, group in [("gptq", "32"), ("gptq", "64"), ("rtn", "64")]
    )
    assert one == other != third
