"""A trial in this process: what it brings into the store, and what its record then says."""

import dataclasses

import pytest

from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.keys import key_of
from qsweep.base.locks import device_lock
from qsweep.base.progress import silent
from qsweep.sweep.artifacts import calibration_tokens
from qsweep.sweep.recording import finished_record
from qsweep.sweep.trial import run_trial, windows_of


def test_what_is_there_stays_and_what_is_missing_is_made_again(planned):
    store, plan = planned("quant=rtn")
    assert finished_record(plan, store) is None
    run_trial(plan, store, silent)
    first = finished_record(plan, store)
    assert first.finished
    assert finished_record(plan.reference(), store)  # the reference was made on the way
    # the artifact alone is gone: it is made again, and what was measured of it counts
    store.remove("artifacts", plan.artifact_key)
    assert finished_record(plan, store) is None
    run_trial(plan, store, silent)
    assert finished_record(plan, store).measurements == first.measurements
    # the reference's cache is gone: it comes back for whom it is needed
    (step,) = plan.measurements
    store.remove("references", key_of(step.reference))
    store.remove("measurements", step.key)
    run_trial(plan, store, silent)
    again = finished_record(plan, store).measurements[0].metrics
    assert again == first.measurements[0].metrics


def test_a_text_too_short_says_what_to_do_and_leaves_nothing(planned):
    store, plan = planned("quant=none", "eval.context=1024", "+corpus.file.max_bytes=99")
    with pytest.raises(ConfigError, match=r"the text is too short: .* or lower eval.context"):
        run_trial(plan, store, silent)
    assert finished_record(plan, store) is None
    assert not list((store.root / "measurements").iterdir())


def test_two_presets_of_one_text_are_two_measurements(planned):
    store, plan = planned("quant=none", "eval.presets=[gptq,llamacpp,strided]")
    run_trial(plan, store, silent)
    found = finished_record(plan, store).measurements
    assert [m.preset for m in found] == ["paper", "llamacpp", "strided"]
    assert [m.facts["tokens_scored"] for m in found] == [126, 62, 63 + 32]
    assert all(m.metrics["kld"] == 0 for m in found)


def test_a_gemma_is_calibrated_with_bos_in_every_sample_as_it_is_measured(planned, tiny_model):
    # the architecture tells, since this tokenizer's name does not
    gemma = tiny_model("gemma3_text")
    store, plan = planned("quant=gptq", "calibration.max_seq_len=32", model=gemma)
    bos = windows_of(plan, plan.measurements[0], store).ids[0, 0]
    assert all(sample[0] == bos for sample in calibration_tokens(plan).samples)


def test_speed_is_measured_on_what_serves_and_the_device_is_locked_meanwhile(planned, monkeypatch):
    pytest.importorskip("llama_cpp")
    from qsweep.evaluate import speed

    store, plan = planned("quant=gguf", "bits=8", "eval.speed=true", "eval.kld_native=true")
    really, locked = speed.measure_speed, []

    def watched(*arguments, **options):
        with pytest.raises(Exception, match="still locked"):
            device_lock("cpu", timeout_s=0).acquire()
        locked.append(True)
        return really(*arguments, **options, prefill_tokens=64, decode_tokens=4, repeats=1)

    monkeypatch.setattr(speed, "measure_speed", watched)
    run_trial(plan, store, silent)
    figures = finished_record(plan, store).speed.figures
    assert locked and figures["prefill_tps"] > 0 and figures["decode_tps"] > 0
    measured = finished_record(plan, store).measurements[0].metrics
    # Q8_0 in llama.cpp is near the dense figure, and not it: it rounds activations too
    assert 0 < figures["kld_native"] < 0.02
    assert figures["kld_native"] != measured["kld"]
    # without the timing the trial is not finished
    assert finished_record(dataclasses.replace(plan, timing={"other": 1}), store) is None


def test_a_figure_that_no_column_has_fails_the_trial_and_is_not_kept(planned, monkeypatch):
    from qsweep import evaluate

    store, plan = planned("quant=rtn")
    run_trial(plan.reference(), store, silent)
    really = evaluate.compare
    monkeypatch.setattr(evaluate, "compare", lambda *both: {**really(*both), "eear": 0.9})
    with pytest.raises(
        QsweepError, match=r"no column of results/columns/table\.py is called 'eear'"
    ):
        run_trial(plan, store, silent)
    assert finished_record(plan, store) is None
    assert store.find("measurements", plan.measurements[0].key) is None
