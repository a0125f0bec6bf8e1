"""qsweep as a library: what the docstrings show, what it leaves alone, what it refuses."""

import doctest
import importlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qsweep
from qsweep.base.errors import ConfigError
from qsweep.results.columns.table import PROMISED as COLUMNS

pytestmark = pytest.mark.usefixtures("warm_jobs")
BRIEF = {"eval.max_windows": 2, "eval.noise_floor": False}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A working directory, in which the examples of the docstrings ran."""
    folder, before = tmp_path_factory.mktemp("api"), Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def examples(here):
    found = {}
    for name in ("run", "load", "measure"):
        module = importlib.import_module(f"qsweep.api.{name}")
        found[name] = doctest.testmod(module)
    return found


def test_the_examples_of_the_docstrings_run(examples):
    for name, result in examples.items():
        assert result.failed == 0 and result.attempted >= 2, name


def surroundings():
    root = logging.root
    return Path.cwd(), root.level, list(root.handlers), list(sys.argv), dict(os.environ)


def test_what_ran_is_found_again_and_leaves_the_process_as_it_was(
    examples, here, capfd, empty_database
):
    shutil.copy(empty_database, here / "outputs" / "mlflow.db")
    before = surroundings()
    sweep = qsweep.run(BRIEF, quant="rtn", bits=[4, 8], corpus=("python_docs",), device="cpu")
    assert before == surroundings()
    assert "[1/" not in capfd.readouterr().err  # nothing had to run
    table = sweep.table()
    assert list(table)[: len(COLUMNS)] == list(COLUMNS)
    assert str(table["bits"].dtype) == "Int64" and table["kld"].dtype == float
    assert len(table) == 3 and sweep.exit_code == 0
    assert table.equals(qsweep.load(sweep.directory))
    logged = qsweep.load(f"sqlite:///{here}/outputs/mlflow.db")
    assert sorted(logged["key"]) == sorted(table["key"])
    assert sorted(logged["kld"].dropna()) == sorted(table["kld"].dropna())
    assert repr(sweep) == f"Sweep('{sweep.name}', 3 finished, in outputs/sweeps/{sweep.name})"
    assert "-m eval.max_windows=2" in sweep.command and "bits=4,8" in sweep.command
    assert len(qsweep.load(here / "outputs")) > 3
    assert set(qsweep.load("outputs", sweeps=[sweep.name])["sweep"]) == {sweep.name}


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ({}, {"bitz": 3}, "no option 'bitz'; did you mean 'bits'?"),
        ({}, {"quant": ["gptq", "awk"]}, "quant=awk: no such choice; did you mean 'awq'?"),
        ({"quant.damp_persent": 1}, {}, "did you mean 'quant.damp_percent'"),
        ({}, {"bits": []}, "bits=[]: no value"),
        ({}, {"bits": {1, 2}}, "bits: set is no value of an option"),
        ({}, {"sweep": ["a", "b"]}, "sweep: a sweep has one value of it"),
        ({}, {"file": "pareto"}, "file=pareto: is a search"),
        ({}, {"file": "parto"}, "no such file; did you mean 'pareto'"),
        ({"hydra.job.chdir": True}, {}, "hydra.job.chdir: is Hydra's"),
        ({"corpus.path": "/no/such.txt"}, {"corpus": "file"}, "/no/such.txt"),
        ({}, {"outputs_dir": None}, "outputs_dir=None"),
    ],
)
def test_what_is_invalid_is_an_error_of_one_line(here, arguments, named, message):
    with pytest.raises(ConfigError) as caught:
        qsweep.run(arguments, **named)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_measured_or_loaded_is_said(here, tmp_path, tiny_model):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    for place, message in (
        (tmp_path / "empty", "neither an artifact of a store nor a checkpoint"),
        (tmp_path / "a.gguf", "a.gguf: truncated or damaged"),
    ):
        with pytest.raises(qsweep.QsweepError, match=message):
            qsweep.measure(place)
    with pytest.raises(qsweep.QsweepError, match="bits: is what the artifact was made by"):
        qsweep.measure(tmp_path, bits=4)
    with pytest.raises(qsweep.QsweepError, match="neither a sweep's folder nor"):
        qsweep.load(tmp_path)
    with pytest.raises(qsweep.QsweepError, match="no MLflow database"):
        qsweep.load(f"sqlite:///{tmp_path}/none.db")


def test_a_checkpoint_that_somebody_changed_is_measured(here, tmp_path, pocket_dir):
    from safetensors.torch import load_file, save_file

    changed = tmp_path / "changed"
    shutil.copytree(pocket_dir, changed)
    (weights,) = changed.glob("*.safetensors")
    tensors = load_file(weights)
    tensors = {name: t * (1.01 if "mlp" in name else 1) for name, t in tensors.items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    sweep = qsweep.measure(changed, BRIEF, corpus="python_docs", tracking="none", device="cpu")
    (row,) = (r for _, r in sweep.table().iterrows() if r["method"] == "existing")
    assert row["status"] == "finished", row["reason"]
    assert 0 < row["kld"] < 1 and row["format"] == "hf"


def test_importing_it_costs_nothing_and_offers_all():
    code = (
        "import sys, time; before = set(sys.modules); t = time.process_time(); import qsweep\n"
        "spent = time.process_time() - t; heavy = {'torch', 'hydra', 'pandas', 'mlflow', 'numpy'}\n"
        "print(spent, heavy & set(sys.modules), sorted(set(qsweep.__all__) - set(dir(qsweep))))\n"
        "print([getattr(qsweep, name) for name in qsweep.__all__] != [], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    spent, rest = done.stdout.split(" ", 1)
    assert float(spent) < 0.1 and rest == "set() []\nTrue False\n", done.stdout + done.stderr
    with pytest.raises(AttributeError, match="no attribute 'sweep_it'"):
        _ = qsweep.sweep_it
