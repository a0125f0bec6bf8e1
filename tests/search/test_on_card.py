"""A search for one card: what runs there, what is left out, and which figures count."""

from types import SimpleNamespace

import pytest
from search_lab import FormulaLab, make_search

from helpers.records import trial
from helpers.typed import typed
from qsweep.base.errors import ConfigError
from qsweep.evaluate.metrics import quality
from qsweep.formats.hardware import CARDS
from qsweep.formats.numbers import FORMATS
from qsweep.search.answer import finding_of
from qsweep.search.on_card import OnCard, memory_of
from qsweep.search.page import _counted
from qsweep.search.served import as_served, leaves_cache_out
from qsweep.search.settings import search_config
from qsweep.search.storage import open_storage

ACTIVATIONS = {
    "ppl_ratio_activations": 1.10, "ppl_ratio_activations_low": 1.09,
    "ppl_ratio_activations_high": 1.11, "kld_activations": 0.05, "kld_activations_stderr": 0.001,
    "top1_agreement_activations": 0.9,
}  # fmt: skip
KV = {"ppl_ratio_kv": 1.15, "ppl_ratio_kv_low": 1.14, "ppl_ratio_kv_high": 1.16, "kld_kv": 0.08}


def record(name="nvfp4", served=("activations",), **figures):
    made = trial(f"rtn {name}", "rtn", 1.03, 0.01, bits=4, size_gb=0.5)
    made["options"] |= {"format": name}
    made["artifact"]["format"] = "compressed-tensors"
    measured = made["measurements"][0]
    measured["metrics"] |= {"kld": 0.02, "kld_stderr": 0.0005, "ppl": 10.3} | figures
    activations, cache = {"activations": 1}, {"kv_cache": ["fp8", 1]}
    kinds = {"activations": activations, "kv": activations | cache, "kv alone": cache}
    measured["served"] = [{"name": one.split()[0], "serving": kinds[one]} for one in served] or None
    return typed(made)


def metrics(found):
    return found.primary.metrics


def quant(name, method="rtn"):
    return SimpleNamespace(method=method, format=FORMATS[name]())


def test_what_serving_adds_counts_where_it_was_measured():
    found = as_served(record(**ACTIVATIONS))
    assert metrics(found)["ppl_ratio"] == 1.10 and metrics(found)["kld"] == 0.05
    assert metrics(found)["ppl"] == pytest.approx(10.3 / 1.03 * 1.10)
    assert metrics(found)["quality"] == quality(1.10)
    assert metrics(found)["quality_per_gb"] == quality(1.10) / 0.5
    assert found.primary.verdict == "usually"


def test_the_last_run_counts():
    found = as_served(record(served=("activations", "kv"), **ACTIVATIONS, **KV))
    assert metrics(found)["ppl_ratio"] == 1.15


def test_where_weights_are_unpacked_activations_do_not_count():
    made = record(served=("activations", "kv"), **ACTIVATIONS, **KV)
    assert metrics(as_served(made, CARDS["h100"]))["ppl_ratio"] == 1.03
    assert metrics(as_served(made, CARDS["b200"]))["ppl_ratio"] == 1.15
    alone = record(served=("kv alone",), **KV)
    assert metrics(as_served(alone, CARDS["h100"]))["ppl_ratio"] == 1.15


def test_a_cache_that_was_measured_on_top_of_activations_is_said_not_to_count():
    made = record(served=("activations", "kv"), **ACTIVATIONS, **KV)
    served, unpacked = (as_served(made, CARDS[name]) for name in ("b200", "rtx3090"))
    assert not leaves_cache_out(served) and leaves_cache_out(unpacked)
    assert not leaves_cache_out(as_served(record(**ACTIVATIONS), CARDS["rtx3090"]))
    entry = SimpleNamespace(finding=finding_of(unpacked, {}))
    assert _counted(entry) == " (its KV cache is not counted)"
    assert _counted(SimpleNamespace(finding=finding_of(served, {}))) == (
        " (figures with the KV cache as served)"
    )
    seen = OnCard(CARDS["rtx3090"])
    assert seen.why_not(quant("nvfp4"), cached=True) == ""
    assert seen.why_not(quant("nvfp4a16"), cached=True) == ""
    *_, line = seen.lines
    assert line.startswith("nvfp4 there: a KV cache is measured on top of quantized activations")


def test_all_that_a_run_tells_of_itself_counts():
    measured = {
        "kld_p99": 0.3, "kld_max": 2.0, "true_prob_rms": 0.01, "kld_q4": 0.03, "ppl_stderr": 0.2,
        "kld_activations_p99": 0.6, "kld_activations_max": 3.0,
        "kld_activations_q4": 0.07, "kld_floor_batch": 1e-6,
    }  # fmt: skip
    found = metrics(as_served(record(**ACTIVATIONS, **measured)))
    assert [found[name] for name in ("kld_p99", "kld_max", "kld_q4")] == [0.6, 3.0, 0.07]
    # A figure that this run lacks is none, rather than the weights'.
    assert found["true_prob_rms"] is None and "ppl_stderr" not in found
    assert found["kld_floor_batch"] == 1e-6


def test_a_record_with_weights_alone_stays_as_it_is():
    made = record(served=())
    assert as_served(made, CARDS["b200"]) is made


def test_a_refused_run_has_no_figures_to_count():
    assert metrics(as_served(record()))["ppl_ratio"] == 1.03


def test_a_card_tells_what_runs_there_and_what_does_not():
    seen = OnCard(CARDS["rtx3090"])
    assert seen.why_not(quant("nvfp4")) == "" and seen.why_not(quant("int")) == ""
    assert seen.why_not(quant("w4afp8")) == "w4afp8 needs Hopper only"
    assert seen.why_not(quant("w4afp8", "gguf")) == ""
    on, unpacked, left_out = seen.lines
    assert on == "on rtx3090 (Ampere), 24 GB"
    assert unpacked.startswith("nvfp4 there: weights are unpacked")
    assert left_out == "left out there: w4afp8 needs Hopper only"
    assert not seen.nothing


def test_nothing_that_runs_on_a_card_is_said_with_the_reasons():
    seen = OnCard(CARDS["b200"])
    assert seen.why_not(quant("w8a8")) and seen.why_not(quant("w4afp8"))
    assert seen.nothing == (
        "nothing in the space runs on b200 (Blackwell): w8a8 needs Turing to Hopper; "
        "w4afp8 needs Hopper only"
    )


def test_without_a_card_everything_runs_and_nothing_is_said():
    seen = OnCard(None)
    assert seen.why_not(quant("mxfp8")) == "" and seen.lines == [] and seen.nothing == ""
    assert memory_of(None) == [] and memory_of(CARDS["cpu"]) == []


def test_a_cards_memory_is_a_bound():
    (bound,) = memory_of(CARDS["l4"])
    assert str(bound) == "size_gb <= 24"


def test_an_unknown_card_is_refused_by_the_settings():
    with pytest.raises(ConfigError, match=r"search\.hardware=rtx4091: no such card; did you mean"):
        search_config({"hardware": "rtx4091"})


def test_a_search_counts_what_serving_adds(tmp_path):
    class Served(FormulaLab):
        def _run(self, overrides):
            found = super()._run(overrides)
            for one in found["measurements"]:
                one["metrics"] |= ACTIVATIONS | {"ppl_ratio_activations": 1.3}
                one["served"] = [{"name": "activations", "serving": {"activations": 1}}]
            return found

    search = make_search(Served(), open_storage(None, tmp_path), trials=1, rungs=[])
    search.run()
    (entry,) = [e for e in search.study.entries() if e.state == "complete"]
    assert entry.finding["counted"] == "activations"
    assert entry.finding["ppl_ratio"] == 1.3 and entry.finding["verdict"] == "problematic"
