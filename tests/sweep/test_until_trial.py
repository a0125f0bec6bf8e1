"""``eval.until=`` in a trial: what it reads, what its record says, and what keys it is part of."""

import pytest

from helpers.configs import composed
from qsweep.base.errors import ConfigError
from qsweep.base.progress import silent
from qsweep.evaluate import read_measurement
from qsweep.sweep.config import trial_config
from qsweep.sweep.overrides import acceptable
from qsweep.sweep.recording import finished_record
from qsweep.sweep.trial import run_trial

RULE = "eval.until='ratio ±1 %'"
MANY = "eval.max_windows=28"


def test_it_is_part_of_a_quantized_models_key_alone_and_only_where_it_is_set(planned):
    _, plain = planned("quant=rtn", MANY)
    _, same = planned("quant=rtn", MANY, "eval.until=null")
    _, until = planned("quant=rtn", MANY, RULE)
    _, spelled = planned("quant=rtn", MANY, "eval.until='ratio +-1%'")
    _, other = planned("quant=rtn", MANY, "eval.until='ratio ±2 %'")
    assert plain.key == same.key and "until" not in plain.measurements[0].identity
    assert until.key == spelled.key != plain.key and other.key != until.key
    assert until.artifact_key == plain.artifact_key
    assert until.reference().key == plain.reference().key
    assert until.measurements[0].reference == plain.measurements[0].reference


def test_it_is_typed_without_quotes_for_hydra(capsys):
    for typed in ("eval.until=ratio ±0.5 %", "eval.until=kld ±0.002"):
        found = trial_config(composed(acceptable(typed)))
        assert found.eval.until == typed.removeprefix("eval.until=")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["eval.until=soon"], "eval.until=soon: how wide an interval may be, as in"),
        (["eval.until='kld ±0.1'", "eval.divergence=false"], "set eval.divergence=true"),
    ],
)
def test_what_it_cannot_be_is_one_line(overrides, words):
    with pytest.raises(ConfigError) as caught:
        trial_config(composed(*overrides))
    assert words in str(caught.value)
    assert trial_config(composed("eval.until='kld ±0.1'", "eval.divergence=true"))


def test_a_trial_reads_some_windows_and_its_cache_is_measured_on_the_same(planned):
    store, plan = planned("quant=rtn", "bits=8", MANY, RULE, "kv_cache=q4_0")
    run_trial(plan, store, silent)
    (measurement,) = finished_record(plan, store).measurements
    facts, metrics = measurement.facts, measurement.metrics
    assert facts["windows"] == 12 and facts["whole"]["windows"] == 28
    assert facts["until"]["rule"] == "ratio ±1 %" and facts["until"]["reached"]
    assert metrics["ppl_ratio_high"] / metrics["ppl_ratio"] - 1 <= 0.01
    assert metrics["kld_low"] < metrics["kld"] < metrics["kld_high"]
    (run,) = measurement.served
    assert run.facts["fingerprint"] == facts["fingerprint"] and run.facts["until"] == facts["until"]
    weights, cache = (
        read_measurement(store.require("measurements", key).path).arrays
        for key in plan.measurements[0].keys
    )
    assert weights["window_number"].tolist() == cache["window_number"].tolist()
    assert metrics["kld_kv_added_low"] < metrics["kld_kv_added"] < metrics["kld_kv_added_high"]
    # the reference read all, and is the one that others are compared with, too
    (base,) = finished_record(plan.reference(), store).measurements
    assert base.facts["windows"] == 28 and "until" not in base.facts


def test_without_a_divergence_it_stops_by_the_ratio(planned):
    store, plan = planned("quant=rtn", "bits=8", MANY, RULE, "eval.divergence=false")
    run_trial(plan, store, silent)
    (measurement,) = finished_record(plan, store).measurements
    assert measurement.facts["windows"] == 12 and "kld" not in measurement.metrics
