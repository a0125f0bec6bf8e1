"""Sensitivities of a sweep's artifacts: made once by a job of its own, found afterwards."""


import pytest

from helpers.configs import composed
from qsweep.base.store import Store
from qsweep.sweep import sensitivity
from qsweep.sweep.artifacts import obtain_artifact
from qsweep.sweep.config import sweep_config, trial_config
from qsweep.sweep.plan import find_setting, make_plan
from qsweep.sweep.session import open_session
from qsweep.sweep.state import Sweep

SMALL = ["device=cpu", "eval.max_windows=1", "calibration.num_samples=2", "tracking=none"]


@pytest.fixture
def made(tmp_path, pocket_dir):
    """``made("quant=rtn", "bits=3")`` is a plan whose artifact is in the store."""
    store = Store(tmp_path / "store")

    def make(*overrides, artifact=True):
        config = composed(*SMALL, f"outputs_dir={tmp_path}", *overrides)
        trial = trial_config(config)
        plan = make_plan(trial, find_setting(trial, pocket_dir, store))
        if artifact:
            obtain_artifact(plan, store, lambda *_: None)
        return plan

    make.store = store
    return make


@pytest.fixture
def session(tmp_path, warm_jobs):
    config = sweep_config(composed(*SMALL, "sweep=t", f"outputs_dir={tmp_path}"))
    with config.launcher as launcher, open_session(
        Sweep(config, "t", "qsweep"), Store(tmp_path / "store"), launcher
    ) as found:
        yield found


def rounded(bits):
    return "quant=rtn", f"bits={bits}", "group_size=32"


def test_one_job_makes_what_is_missing_and_the_next_finds_it(made, session, capfd):
    two, four = (made(*rounded(bits)) for bits in (2, 4))
    (first,) = sensitivity.sensitivities(session, [two]).values()
    assert "sensitivities of one configuration  finished" in capfd.readouterr().err
    found = sensitivity.sensitivities(session, [two, four, four])
    assert "sensitivities of one configuration  finished" in capfd.readouterr().err
    assert found[two.artifact_key] == first
    assert first.keys() == found[four.artifact_key].keys() == two.setting.facts.linears.keys()
    assert all(first[name] > value > 0 for name, value in found[four.artifact_key].items())
    assert sensitivity.sensitivities(session, [four, two]) == found
    assert not capfd.readouterr().err
