"""Before a sweep a line says of a model that it does not fit into memory whole."""

import pytest

from helpers.configs import composed
from qsweep.base.store import Store
from qsweep.sweep.config import trial_config
from qsweep.sweep.plan import make_plan
from qsweep.sweep.preflight import streaming_note
from qsweep.sweep.setting import find_setting


@pytest.fixture
def plan(tmp_path, pocket_dir):
    def make(*overrides):
        (text := tmp_path / "a.txt").write_text("text")
        words = ["corpus=file", f"corpus.path={text}", "device=cpu", "quant=rtn", *overrides]
        trial = trial_config(composed(*words))
        return make_plan(trial, find_setting(trial, pocket_dir, Store(tmp_path / "store")))

    return make


def test_a_note_says_what_is_known_of_a_model_that_does_not_fit(plan):
    note = streaming_note(plan(), free=1000)
    assert "one at a time, or, where its architecture does not let them, all" in note
    assert streaming_note(plan(), free=1 << 60) is None


@pytest.mark.parametrize("override", ["+model.stream=false", "+model.device_map=auto"])
def test_nothing_is_said_of_a_model_that_is_not_streamed(plan, override):
    assert streaming_note(plan(override), free=1000) is None
