"""Which trials are draws of one setting, and how many of those that were asked for."""

import numpy as np
import pytest

from helpers.measured import TOKENS, WINDOWS, measured_trial
from helpers.records import reference, shown, trial
from helpers.typed import typed
from qsweep.evaluate.draws import Draws, difference
from qsweep.results.covered import draws_text, number_asked
from qsweep.results.draws import pooled
from qsweep.results.record import Row
from qsweep.results.rows import rows
from qsweep.results.windows import windows_of
from qsweep.sweep.recording import completed


def draw(seed, asked=None, /, *, method="gptq", device="auto", **options):
    """One draw of a setting; ``asked`` is what ``seeds`` was."""
    made = trial("gptq 3-bit", method, 1.05 + 0.01 * seed, 0.05, bits=3, calibration="python")
    made["config"] = {"calibration": {"seed": seed}, "seed": seed, "device": device}
    made["config"] |= {} if asked is None else {"seeds": asked}
    made["options"] = {**made["options"], **options}
    return made | {"key": f"key-{seed}-{asked}-{device}-{sorted(options.items())}"}


def settings(*draws):
    return [r for r in pooled(typed([reference(), *draws])) if not r.reference]


def told(*draws):
    (one,) = settings(*draws)
    return draws_text(Row(one, one.primary))


def test_draws_of_other_sweeps_count_as_asked_for():
    assert told(draw(0, [0, 1]), draw(1, [0, 1]), draw(7)) == "3"
    assert told(draw(0, [0, 1]), draw(7)) == "2 of 3"
    (one,) = settings(draw(0, [0, 1]), draw(7))
    assert number_asked(one) == 3


def test_one_draw_is_none_of_several():
    alone = settings(draw(0, [0]))
    assert [one.draws for one in alone] == [None] and draws_text(Row(alone[0])) == ""
    assert "of one draw" in shown([reference(), draw(0, [0])], 200, terminal=False)
    # of two that were asked for it is one, and with one of before it is two
    assert told(draw(0, [0, 1])) == "1 of 2"
    assert told(draw(0), draw(1, [1])) == "2"


def test_nothing_is_said_of_draws_where_none_are_pooled():
    """As of what only its own runtime measures."""
    alone = [draw(seed, [0, 1]) | {"measurements": []} for seed in range(2)]
    found = settings(*alone)
    assert len(found) == 2
    assert {draws_text(row) for row in rows(found)} == {""}


def test_what_they_were_made_on_tells_no_settings_apart():
    assert told(draw(0, [0, 1]), draw(1, [0, 1], device="cpu")) == "2"


def test_what_was_measured_on_another_device_is_another():
    other = draw(1, [0, 1])
    other["measurements"][0]["facts"] = {**other["measurements"][0]["facts"], "device_type": "cuda"}
    assert len(settings(draw(0, [0, 1]), other)) == 2


def test_a_quantizers_own_seed_makes_another_draw():
    """As of ``quant=autoround quant.seed=0,1`` in the sweep before."""
    quant = [draw(0, [0, 1], seed=0), draw(0, seed=1), draw(1, [0, 1], seed=1)]
    (one,) = settings(*quant)
    assert [(d.config["seed"], d.options["seed"]) for d in one.draws] == [(0, 0), (0, 1), (1, 1)]
    assert draws_text(Row(one)) == "3"


def test_draws_are_paired_by_all_that_drew_them(tmp_path):
    """Those of one text but two of the quantizer's seeds are not each other's copies."""

    def made(name, text, quant):
        own = measured_trial(tmp_path, name, "autoround", 0.1, 1.0, noise=0.01, seed=len(name))
        own["config"] = {"calibration": {"seed": text}, "seeds": [0, 1]}
        return own | {"options": {"bits": 4, "seed": quant}, "calibration": "python", "name": "x"}

    (one,) = settings(made("a", 0, 0), made("bb", 0, 1), made("cccc", 1, 1))
    found = windows_of(Row(one, one.primary)).draws("nll")
    assert found.seeds == ((0,), (0, 1), (1,))
    paired = difference(found, Draws(found.sums[::-1], found.seeds[::-1]), np.full(WINDOWS, TOKENS))
    assert paired.value == pytest.approx(0) and paired.half() == pytest.approx(0, abs=1e-12)


def test_the_run_at_hand_says_of_how_many_it_is_one():
    first, again = typed([draw(0, [0, 1]), draw(0)])
    assert completed(first, again).config.get("seeds") is None
    assert completed(again, first).config["seeds"] == [0, 1]
    assert "seeds" not in completed(again, again).config
