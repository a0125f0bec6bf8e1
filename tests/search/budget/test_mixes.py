"""Mixes as points of a search, on the embedded model."""

import csv

import optuna
import pytest

from helpers.sweeps import run_here
from qsweep.search.budget.mixes import mixed_bits

SMALL = [
    *("--config-name=pareto", "sweep=t", "tracking=none", "quant=rtn", "format=int"),
    *("bits=2,3.5,4", "group_size=64", "corpus=[python_docs]", "eval.max_windows=8"),
    *("search.few_windows=2", "search.rungs=[few]", "search.serving=false"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    result = run_here([*SMALL, f"outputs_dir={outputs}"])
    assert result.returncode == 0, result.stdout + result.stderr
    return outputs, result


def test_a_mix_is_a_trial_of_the_study(finished):
    outputs, _ = finished
    url = f"sqlite:///{outputs / 'sweeps/t/study.db'}"
    found = optuna.load_study(study_name="t", storage=url).trials
    bits = sorted(
        value for t in found for name, value in t.params.items() if name.startswith("bits")
    )
    assert bits == ["2", "3.5", "4"]


def test_it_lies_between_the_uniform_ones(finished):
    outputs, _ = finished
    with (outputs / "sweeps/t/results.csv").open(encoding="utf-8") as file:
        rows = {float(r["bpw"]): float(r["kld"]) for r in csv.DictReader(file) if r["bpw"]}
    two, mixed, four = sorted(bpw for bpw in rows if bpw < 16)
    assert 3.3 < mixed <= 3.5
    assert rows[two] > 2 * rows[mixed] > 2 * rows[four]


def test_the_answer_says_how_to_make_it_again(finished):
    outputs, _ = finished
    page = (outputs / "sweeps/t/answer.md").read_text()
    (file,) = (outputs / "sweeps/t/mixes").glob("*.yaml")
    assert f"quant.rules={file}" in page


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
