"""A planned trial."""

import pytest

from helpers.configs import composed
from qsweep.base.store import Store
from qsweep.sweep.config import trial_config
from qsweep.sweep.plan import make_plan
from qsweep.sweep.setting import find_setting


@pytest.fixture
def planned(tmp_path, pocket_dir):
    store = Store(tmp_path / "store")
    text = tmp_path / "text.txt"
    text.write_text("A sentence that is measured, and another one.\n" * 200)

    def make(*overrides, model=pocket_dir):
        given = {o.partition("=")[0] for o in overrides}
        small = [o for o in SMALL if o.partition("=")[0] not in given]
        trial = trial_config(composed(*small, f"corpus.path={text}", *overrides))
        return store, make_plan(trial, find_setting(trial, model, store))

    return make


SMALL = ["corpus=file", "eval.context=64", "eval.max_windows=2", "device=cpu"]
