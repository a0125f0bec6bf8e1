"""Sensitivities of a sweep's artifacts: made once by a job of its own, found afterwards."""

import json
import os
import signal
import subprocess
import sys

import pytest

from helpers.configs import composed
from qsweep.base.errors import ArtifactCorrupt, IncompatibleTrial, QsweepError
from qsweep.base.keys import key_of
from qsweep.base.store import Store
from qsweep.sweep import sensitivity
from qsweep.sweep.artifacts import obtain_artifact
from qsweep.sweep.config import sweep_config, trial_config
from qsweep.sweep.plan import make_plan
from qsweep.sweep.session import open_session
from qsweep.sweep.setting import find_setting
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
    with (
        config.launcher as launcher,
        open_session(Sweep(config, "t", "qsweep"), Store(tmp_path / "store"), launcher) as found,
    ):
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


def test_a_quantizer_without_text_and_one_with_share_the_text_of_the_sweep(made, session):
    plans = [made(*rounded(4)), made("quant=gptq", "bits=4", "quant.backend=native")]
    assert plans[0].setting.calibration is None
    found = sensitivity.sensitivities(session, plans)
    first, second = (found[plan.artifact_key] for plan in plans)
    assert first.keys() == second.keys()
    assert first != second
    entries = {
        key_of(sensitivity._wanted(plan, made.store).identity): plan.artifact_key for plan in plans
    }
    for key, artifact in entries.items():
        entry = made.store.find("sensitivities", key, full=True)
        assert json.loads((entry.path / sensitivity.FILE).read_text()) == found[artifact]
        assert entry.content["layers"] == 28


def test_another_seed_of_the_text_is_another_entry(made, session):
    plans = [made(*rounded(3), f"calibration.seed={seed}") for seed in (0, 1)]
    assert plans[0].artifact_key == plans[1].artifact_key
    first, second = (sensitivity.sensitivities(session, [plan]) for plan in plans)
    assert first.keys() == second.keys()
    assert first != second


def test_what_is_damaged_is_made_again(made, session):
    plan = made(*rounded(3))
    before = sensitivity.sensitivities(session, [plan])
    (file,) = made.store.root.glob(f"sensitivities/*/{sensitivity.FILE}")
    file.write_text(file.read_text()[:40])
    assert sensitivity.sensitivities(session, [plan]) == before


def test_an_artifact_that_is_missing_and_what_has_none(made, session):
    with pytest.raises(ArtifactCorrupt, match="is gone or damaged; run its trial again"):
        sensitivity.sensitivities(session, [made(*rounded(3), artifact=False)])
    with pytest.raises(QsweepError, match="what is not quantized has no sensitivities"):
        sensitivity.sensitivities(session, [made("quant=none", artifact=False)])


def test_awq_is_refused_in_one_line(made, session):
    plan = made("quant=awq", "quant.backend=native", "bits=4", "group_size=64")
    with pytest.raises(IncompatibleTrial, match="AWQ puts scales into other layers") as refused:
        sensitivity.sensitivities(session, [plan])
    assert "\n" not in str(refused.value)
    assert not list((made.store.root / "sensitivities").iterdir())


CHILD = """
import json, sys
from qsweep.sweep import sensitivity
sensitivity.run(json.loads(sys.argv[1]), lambda *told: print(*told, flush=True))
"""


def test_two_at_once_and_one_that_is_killed(made, session, tmp_path):
    plans = [made(*rounded(bits)) for bits in (3, 4)]
    payload = {
        "configs": [plan.trial.resolved for plan in plans],
        "store": made.store.address,
        "model": str(plans[0].setting.facts.path),
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(payload)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    first, second = start(), start()
    for line in first.stdout:
        if line.startswith(("forward", "sensitivities")):
            break
    else:
        # The other was sooner; then this one had nothing to do.
        assert first.wait() == 0
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.communicate()[1] is None
    assert second.returncode == 0
    found = sensitivity.sensitivities(session, plans)
    assert set(found) == {plan.artifact_key for plan in plans}
    assert not list(made.store.root.glob("sensitivities/.*.tmp"))
    assert len(list(made.store.root.glob("sensitivities/*"))) == 2
