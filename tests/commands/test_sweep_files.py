"""Sweep files: every one composes, mistakes are one line, and the list of them."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from helpers.sweeps import run_here
from qsweep.base.errors import ConfigError
from qsweep.commands.sweeps import listing
from qsweep.search.settings import SearchConfig
from qsweep.search.space import Space, mixed_bits, overrides_of
from qsweep.search.sweep_file import check_options, read_rows, read_space

ROOT = Path(__file__).resolve().parents[2]


def process(module, *arguments, cwd=ROOT, env=None):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        timeout=240,
    )


def combinations(params, when=None, arguments=()):
    space = read_space(params, when, arguments)
    return [" ".join(overrides_of(params)) for params in space.combinations()]


def test_params_are_a_product_and_conditions_add_to_some_of_it():
    found = combinations(
        {"quant": "gptq,awq", "bits": 4}, {"quant=gptq": {"desc_act": "false,true"}}
    )
    assert found == [
        "quant=gptq bits=4 desc_act=false",
        "quant=gptq bits=4 desc_act=true",
        "quant=awq bits=4",
    ]


def test_a_condition_may_ask_for_several_things():
    params = {"quant": "gptq,awq", "format": "int,nvfp4"}
    found = combinations(params, {"quant=gptq and format=int": {"bits": "2,3"}})
    assert found == [
        "quant=gptq format=int bits=2",
        "quant=gptq format=int bits=3",
        "quant=gptq format=nvfp4",
        "quant=awq format=int",
        "quant=awq format=nvfp4",
    ]


def test_fractions_of_the_search_that_comes_with_it_are_few_and_mean_something():
    with (ROOT / "sweeps" / "pareto.yaml").open(encoding="utf-8") as file:
        sweeper = yaml.safe_load(file)["hydra"]["sweeper"]
    space = read_space(sweeper["params"], sweeper["when"], [])
    every = list(space.combinations())
    mixes = [params for params in every if mixed_bits(params) is not None]
    assert {(p["quant"], p.get("format")) for p in mixes} == {("gptq", "int"), ("gguf", None)}
    assert all(p["format"] == "int" for p in every if "bits" in p)
    # All are gone through in the order of promise, uniform ones and mixes.
    assert len(every) - len(mixes) <= SearchConfig().enumerate_below
    assert space.count(1000) < 200


def test_the_command_line_replaces_what_the_file_varies():
    assert combinations({"bits": "2,3"}, None, ["bits=8"]) == ["bits=8"]
    when = {"quant=gptq": {"bits": "2,3"}, "quant=awq": {"bits": "4,8"}}
    found = combinations({"quant": "gptq,awq"}, when, ["bits=3,4", "seed=1"])
    assert "quant=awq seed=1 bits=3" in found and len(found) == 4


def test_conditions_may_look_at_what_the_command_line_adds():
    found = combinations({}, {"quant=gptq": {"bits": "3,4"}}, ["quant=gptq,awq"])
    assert found == ["quant=gptq bits=3", "quant=gptq bits=4", "quant=awq"]


@pytest.mark.parametrize(
    ("params", "when", "message"),
    [
        ({"bits": [2, 3]}, None, "params.bits is a YAML list, one trial; write bits: 2,3"),
        ({"bits": None}, None, "params.bits: must be an override string"),
        ({"bits": {"a": 1}}, None, "params.bits: must be an override string"),
        ("bits=3", None, "params: must be a mapping"),
        ({"quant": "gptq"}, {"quant": {"bits": "3"}}, "a condition is NAME=VALUE"),
        ({"quant": "gptq"}, {"quant=gptq and": {"bits": "3"}}, "NAME=VALUE,VALUE, or some"),
        ({"quant": "gptq"}, {"quant=gptq and form=int": {"bits": "3"}}, "'form' is not among"),
        ({"quant": "gptq"}, {"quand=gptq": {"bits": "3"}}, "did you mean 'quant'"),
        ({"quant": "gptq"}, {"quant=gptq": {"bits": [3]}}, "when.quant=gptq.bits is a YAML list"),
    ],
)
def test_mistakes_in_a_sweep_file_are_named(params, when, message):
    with pytest.raises(ConfigError) as caught:
        read_space(params, when, [])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["quant=gptq"]], "row 1 is not a string of overrides"),
        (["quant=gptq", {"bits": 3}], "row 2 is not a string of overrides"),
        (["quant=gptq,awq"], "quant=gptq,awq has several values; write a row for each"),
        (["quant=gptq bits=3"], "bits: the rows of this sweep file set it"),
    ],
)
def test_mistakes_in_rows_are_named(rows, message):
    space = read_space({}, None, ["bits=4"])
    with pytest.raises(ConfigError) as caught:
        read_rows(rows, space)
    assert message in str(caught.value)


def test_rows_are_trials_of_their_own():
    assert read_rows(["quant=none", "quant=gptq bits=8"], Space(())) == [
        ["quant=none"],
        ["quant=gptq", "bits=8"],
    ]


def test_an_option_that_nothing_reads_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'bits'"):
        check_options({"bitz": 4}, ["bits", "model"])


def test_the_list_has_a_line_for_each(capsys):
    names = {"architectures", "bits", "degradation", "desc_act", "group_size", "pareto", "smoke"}
    assert names <= {name for name, _ in listing()}
    assert all(said and len(said) <= 110 for _, said in listing())
    result = process("qsweep.sweeps")
    assert result.returncode == 0 and "pareto" in result.stdout


@pytest.mark.parametrize("name", [name for name, _ in listing()])
def test_every_sweep_file_composes(name):
    result = run_here([f"--config-name={name}", "--cfg", "hydra", "-p", "hydra.mode"])
    assert result.returncode == 0, result.stderr
    assert "MULTIRUN" in result.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hydra: {mode: MULTIRUN, sweeper: {params: {bits: [2, 3]}}}", "write bits: 2,3"),
        ("hydra: {mode: MULTIRUN, sweeper: {params: {bitz: '2,3'}}}", "did you mean 'bits'"),
        ("hydra: {mode: MULTIRUN, sweeper: {parms: {bits: '2,3'}}}", "did you mean 'params'"),
        ("bitz: 3\nhydra: {mode: MULTIRUN}", "no option 'bitz'; did you mean 'bits'"),
        ("hydra: {mode: MULTIRUN, sweeper: {trials: [[quant=gptq]]}}", "write - quant=gptq bits=4"),
    ],
)
def test_a_wrong_sweep_file_is_one_line_before_anything_runs(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_text(f"defaults: [config, _self_]\n{content}\n")
    where = ["--config-dir", str(tmp_path), "--config-name=mine"]
    result = run_here([*where, f"outputs_dir={tmp_path}/o", "eval.max_windows=1", "quant=rtn"])
    assert result.returncode == 2, result.stdout + result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr
    assert not (tmp_path / "o" / "sweeps").exists()


@pytest.mark.slow
def test_sweep_files_run_from_an_installed_wheel_elsewhere(tmp_path):
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--no-deps", "-q"),
            *("-w", tmp_path, ROOT),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "site")}
    result = process(
        "qsweep",
        *("--config-name=smoke", "quant=rtn", "tracking=none", "corpus=[python_docs]"),
        cwd=elsewhere,
        env=env,
    )
    assert result.returncode == 0, result.stderr
    assert (elsewhere / "outputs" / "sweeps" / "smoke_corpus-python_docs_quant-rtn").is_dir()
