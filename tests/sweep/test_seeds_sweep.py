"""Real sweeps of several draws, as a user runs them."""

import csv
import json
import re

import pytest

import qsweep as api
from helpers.sweeps import SMALL, qsweep, rows, run_here

HOW = ["quant=gptq", "bits=3", "sym=true", "corpus=python_docs", "eval.noise_floor=false"]


def ran(result):
    """The trials that a command really ran."""
    assert result.returncode == 0, result.stdout + result.stderr
    return re.findall(r"^\[\d+/\d+\] (.+?)  finished", result.stderr, re.MULTILINE)


def of(outputs, method):
    (found,) = [row for row in rows(outputs) if row["method"] == method]
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    return outputs, qsweep(outputs, *HOW, "seeds=2")


def test_each_draw_is_a_trial_and_each_setting_a_row(finished):
    outputs, result = finished
    names = ran(result)
    assert [sum(method in name for name in names) for method in ("none", "gptq")] == [1, 2]
    gptq = of(outputs, "gptq")
    assert (gptq["draws"], gptq["covers"], gptq["seed"]) == ("2", "windows, draws", "")
    low, ratio, high = (float(gptq[f"ppl_ratio{end}"]) for end in ("_low", "", "_high"))
    assert low < ratio < high
    assert "cover windows and draws" in result.stdout and "3 finished" in result.stdout
    assert "Draws" in (outputs / "sweeps/t/report.html").read_text()


def test_more_seeds_make_what_is_missing_alone(finished):
    outputs, _ = finished
    again = qsweep(outputs, *HOW, "seeds=3")
    (name,) = ran(again)
    assert "gptq" in name
    found = of(outputs, "gptq")
    assert (found["draws"], found["draws_asked"]) == ("3", "3")
    with (outputs / "sweeps/t/draws.csv").open() as file:
        assert sorted(row["seed"] for row in csv.DictReader(file)) == ["0", "1", "2"]
    asked = [json.loads(file.read_text())["config"]["seeds"]
             for file in (outputs / "sweeps/t/trials").glob("*.json")]  # fmt: skip
    assert asked == [[0, 1, 2]] * 4


def test_seed_finds_the_draw_and_python_the_setting(finished):
    outputs, _ = finished
    alone = [*HOW, "seed=1", *SMALL, "sweep=alone", f"outputs_dir={outputs}"]
    assert ran(run_here(alone)) == []
    words = dict(word.split("=") for word in [*HOW, *SMALL])
    options = {name: {"true": True, "false": False}.get(v, v) for name, v in words.items()}
    sweep = api.run({**options, "sweep": "api"}, seeds=[0, 1], outputs_dir=str(outputs))
    table = sweep.table()
    assert table[table["method"] == "gptq"]["draws"].tolist() == [2]
    assert all(record.cached for record in sweep.records.values())


def test_the_first_draw_is_exported(finished, tmp_path, monkeypatch):
    outputs, _ = finished
    monkeypatch.chdir(outputs.parent)
    words = ["export", "gptq 3-bit g128", str(tmp_path / "out"), "--sweep", "t"]
    result = run_here([*words, "--outputs", str(outputs)])
    assert result.returncode == 0, result.stderr
    assert "that of seed 0 is taken" in result.stderr
    assert "seed 0" in (tmp_path / "out" / "README.md").read_text()


def test_a_bad_number_is_one_line_and_nothing_runs(tmp_path):
    result = qsweep(tmp_path, "quant=gptq", "seeds=0")
    assert result.returncode == 2 and "seeds=0: a number of draws from 1" in result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "sweeps").exists()


def test_a_budget_says_that_it_takes_one_draw(tmp_path):
    words = ["--config-name=budget", "size_gb=0.003", "seeds=2", f"outputs_dir={tmp_path}"]
    result = run_here(words)
    assert result.returncode == 2
    assert (
        "seeds: a search within a budget compares one draw of each; leave it out" in result.stderr
    )


@pytest.mark.slow
def test_a_search_compares_settings(tmp_path):
    words = [
        *(
            "--config-name=pareto",
            "quant=gptq",
            "format=int",
            "bits=3,4",
            "desc_act=false",
            "group_size=128",
            "seeds=2",
        ),
        *("corpus=[python_docs]", "search.few_windows=2", "search.rungs=[few]", *SMALL),
    ]
    result = run_here([*words, f"outputs_dir={tmp_path}"])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "mean of 2 draws" in (tmp_path / "sweeps/t/answer.md").read_text()
    found = [row for row in rows(tmp_path) if row["method"] == "gptq"]
    assert [row["draws"] for row in found] == ["2", "2"]
    # another number of draws is another study
    again = run_here([*(w for w in words if w != "seeds=2"), "seeds=3", f"outputs_dir={tmp_path}"])
    assert again.returncode == 2 and "seeds" in again.stderr
