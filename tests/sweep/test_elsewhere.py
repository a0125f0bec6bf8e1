"""A job on a machine that lacks the files of the one where the sweep was planned."""

import shutil

import pytest

from helpers.configs import composed
from qsweep.base.errors import ConfigError, TrialFailed
from qsweep.base.store import Store
from qsweep.launch.gpus import visible_gpus
from qsweep.launch.job import DEVICE_VARIABLE
from qsweep.sweep.artifacts import plan_here
from qsweep.sweep.config import SWEEP_WIDE, own_config, trial_config
from qsweep.sweep.jobs import device_of, plan_job
from qsweep.sweep.planning import plan_all


@pytest.fixture
def elsewhere(planned, pocket_dir, tmp_path):
    """A plan of a model that a configuration names, and the store of another machine."""
    model = tmp_path / "model"
    shutil.copytree(pocket_dir, model)
    _, plan = planned("quant=none", f"model.path={model}", model=model)
    return plan, Store(tmp_path / "another store")


def test_a_model_that_lies_elsewhere_is_found_by_the_configuration(elsewhere, tmp_path):
    plan, store = elsewhere
    again = plan_here(own_config(plan.trial), str(tmp_path / "head" / "model"), store, plan.key)
    assert again.key == plan.key
    assert again.setting.facts.path == tmp_path / "model"


def test_other_files_there_are_another_trial(elsewhere, tmp_path):
    plan, store = elsewhere
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace("}", ', "changed": 1}', 1))
    with pytest.raises(TrialFailed, match=r"another trial than where the sweep was planned: the"):
        plan_here(own_config(plan.trial), str(tmp_path / "model"), store, plan.key)


def test_a_model_that_is_nowhere_is_one_line(elsewhere, tmp_path):
    plan, store = elsewhere
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(ConfigError, match="no such directory"):
        plan_here(own_config(plan.trial), str(tmp_path / "model"), store, plan.key)


def test_a_job_says_nothing_of_the_sweep_and_so_is_the_same_in_another(elsewhere, tmp_path):
    plan, store = elsewhere
    job = plan_job(plan, "a", "m:f", (), store, tmp_path / "log", None)
    assert not set(SWEEP_WIDE) & job.payload["config"].keys()
    assert job.payload["key"] == job.id == plan.key


@pytest.mark.parametrize("launch", ["workers", "ray", "slurm"])
def test_a_machine_without_a_gpu_plans_for_those_of_others(tmp_path, monkeypatch, launch):
    config = composed("quant=none", f"launch={launch}", "device=cuda", "corpus=python_code")
    store = Store(tmp_path / "store")
    plans, refused = plan_all([trial_config(config)], store)
    (plan,) = plans.values()
    assert not refused and plan.setting.device == "cuda:0" and device_of(plan) == "cuda"
    # The job has the same key on a node whose slot is a GPU.
    monkeypatch.setenv(DEVICE_VARIABLE, "cuda:0")
    again = plan_here(own_config(plan.trial), str(plan.setting.facts.path), store, plan.key)
    assert again.setting.device == "cuda:0"


@pytest.mark.skipif(bool(visible_gpus()), reason="this machine has a GPU")
def test_here_a_gpu_that_is_not_there_is_refused(tmp_path):
    config = composed("quant=none", "device=cuda", "corpus=python_code")
    with pytest.raises(ConfigError, match="no CUDA device here"):
        plan_all([trial_config(config)], Store(tmp_path / "store"))
