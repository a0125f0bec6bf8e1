"""``kv_cache=`` in a trial: further runs, and nothing else is made again."""

import json
from types import SimpleNamespace

import pytest

from helpers.configs import composed
from qsweep import evaluate
from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.base.progress import silent
from qsweep.base.store import Store
from qsweep.formats.kv_cache.spec import kv_cache
from qsweep.results.record import Row
from qsweep.results.traits import traits
from qsweep.sweep.config import trial_config
from qsweep.sweep.planning import _check_cache, plan_all
from qsweep.sweep.recording import finished_record
from qsweep.sweep.trial import run_trial

QUARTERS = [f"kld_q{number}" for number in range(1, 5)]


def test_a_cache_is_a_run_more_and_no_other_key(planned):
    _, plain = planned("quant=rtn")
    _, none = planned("quant=rtn", "kv_cache=none")
    _, some = planned("quant=rtn", "kv_cache=q8_0/q8_0")
    _, same = planned("quant=rtn", "kv_cache=q8_0")
    _, other = planned("quant=rtn", "kv_cache={default: q4_0, 0: none}")
    assert plain.key == none.key and some.key == same.key
    assert len({plain.key, some.key, other.key}) == 3
    for plan in (some, other):
        assert plan.artifact_key == plain.artifact_key
        assert plan.measurements[0].identity == plain.measurements[0].identity
        assert plan.reference().key == plain.reference().key
    assert some.measurements[0].served[0].identity["served"] == {"kv_cache": ["q8_0", 1]}
    assert other.trial.resolved["kv_cache"] == "{default: q4_0, 0: none}"


def test_the_weights_are_measured_once_whatever_the_cache(planned, monkeypatch):
    store, plain = planned("quant=rtn")
    run_trial(plain, store, silent)
    first = finished_record(plain, store).measurements[0]
    monkeypatch.setattr(evaluate, "measure", None)  # the weights alone are not measured again
    _, plan = planned("quant=rtn", "kv_cache=q4_0")
    run_trial(plan, store, silent)
    record = finished_record(plan, store)
    (found,) = record.measurements
    assert {name: found.metrics[name] for name in first.metrics} == first.metrics
    metrics, (run,) = found.metrics, found.served
    assert metrics["kld_kv"] > metrics["kld"] and metrics["ppl_ratio_kv"] != metrics["ppl_ratio"]
    assert metrics["kld_kv_added"] == pytest.approx(metrics["kld_kv"] - metrics["kld"])
    assert metrics["kld_kv_added_low"] < metrics["kld_kv_added"] < metrics["kld_kv_added_high"]
    assert run.name == "kv" and run.facts["kv_cache"] == {"layers": 4}
    heads = plain.setting.facts.path / "config.json"
    config = json.loads(heads.read_text())
    width = config["num_key_value_heads"] * config["head_dim"]
    assert metrics["kv_bytes_per_token"] == config["num_hidden_layers"] * 2 * width * 4.5 / 8
    assert traits(record)["kv_cache"] == "q4_0" and "kv_cache" not in traits(
        finished_record(plain, store)
    )
    for name in QUARTERS:
        assert 0 < metrics[name] < metrics[name.replace("kld", "kld_kv")]
    # the windows have 63 scored tokens: 15 in the first quarter, 16 in the others
    means = [metrics[name] for name in QUARTERS]
    assert (15 * means[0] + 16 * sum(means[1:])) / 63 == pytest.approx(metrics["kld"])


def test_what_the_cache_alone_costs(planned):
    store, plan = planned(
        "quant=none", "kv_cache={default: fp8, 1: q8_0}", "eval.noise_floor=false"
    )
    run_trial(plan, store, silent)
    found = finished_record(plan, store).measurements[0]
    assert 0 < found.metrics["kld_kv"] < 0.1
    assert found.metrics["ppl_ratio"] == 1 != found.metrics["ppl_ratio_kv"]
    # All of it is the cache's: the reference is 0 away from itself.
    assert found.metrics["kld_kv_added"] == found.metrics["kld_kv"]
    half = found.metrics["kld_kv_added_high"] - found.metrics["kld_kv"]
    assert half > found.metrics["kld_kv_stderr"] > 0
    seen = found.served[0].facts["kv_cache"]
    assert seen["layers"] == 4 and seen["saturated"] == 0 and seen["scales"] is False


def test_quarters_of_a_measurement_that_an_older_version_made(planned):
    store, plan = planned("quant=rtn")
    run_trial(plan, store, silent)
    first = finished_record(plan, store).measurements[0].metrics
    entry = store.find("measurements", plan.measurements[0].key)
    for name in QUARTERS:
        del entry.content["metrics"][name]
    from qsweep.sweep.recording import _metrics

    assert _metrics(entry) == {k: v for k, v in first.items() if k != "quality_per_gb"} | {
        "verdict": entry.content["metrics"]["verdict"]
    }


def test_heads_are_asked_of_the_architecture_where_the_file_has_none(tmp_path):
    def check(**config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        trial = SimpleNamespace(kv_cache=kv_cache("q4_0"), model=SimpleNamespace(name="x"))
        _check_cache(trial, SimpleNamespace(facts=SimpleNamespace(path=tmp_path)))

    check(model_type="llama")  # 32 heads of 128 numbers
    with pytest.raises(IncompatibleTrial, match="x is a model without attention"):
        check(model_type="rwkv", num_hidden_layers=2, hidden_size=64)


def test_what_cannot_be_is_skipped_before_anything_runs(tmp_path, tiny_model):
    text = tmp_path / "text.txt"
    text.write_text("words " * 500)
    common = ["corpus=file", f"corpus.path={text}", "device=cpu", "quant=none"]

    def refused(architecture, cache):
        model = [f"model.path={tiny_model(architecture)}"]
        trial = trial_config(composed(*common, "model=path", *model, f"kv_cache={cache}"))
        plans, (item,) = plan_all([trial], Store(tmp_path / "store"))
        assert not plans and item.status == "skipped" and "\n" not in item.reason
        return item.reason

    assert "is a model without attention, it has no KV cache" in refused("mamba", "q8_0")
    assert "caches a latent in place of keys and values" in refused("deepseek_v2", "fp8")
    assert "has no layer 9, its 2 layers are 0 to 1" in refused("llama", "{9: q8_0}")
    assert "layer 0 of" in refused("lfm2", "{0: q8_0}")


def test_a_model_that_attends_in_its_own_way_is_refused_by_its_trial(planned, tiny_model):
    store, plan = planned("quant=none", "kv_cache=int8", model=tiny_model("falcon"))
    with pytest.raises(IncompatibleTrial, match="FalconForCausalLM attends in a way of its own"):
        run_trial(plan, store, silent)


def test_names_that_are_none():
    with pytest.raises(ConfigError, match="kv_cache=q8: no type 'q8'; .*did you mean 'q8_0'"):
        trial_config(composed("kv_cache=q8"))
    with pytest.raises(ConfigError, match="kv_cache.last: neither default nor"):
        trial_config(composed("kv_cache={last: q8_0}"))


def test_llama_cpps_own_run_has_the_cache_where_it_knows_the_type(planned):
    pytest.importorskip("llama_cpp")
    own = ("quant=gguf", "bits=8", "eval.kld_native=true")
    _, plain = planned(*own)
    for cache, given in (("q8_0/q4_0", "q8_0/q4_0"), ("fp8", None), ("{0: q8_0}", None)):
        _, plan = planned(*own, f"kv_cache={cache}")
        assert plan.timing == (
            plain.timing if given is None else {**plain.timing, "kv_cache": given}
        )


def test_its_column():
    from helpers.synthetic import reference
    from qsweep.results.columns.table import KV_CACHE
    from qsweep.results.record_file import record_of

    record = reference()
    assert KV_CACHE.get(Row(record_of(record))) is None
    record["config"] = {"kv_cache": "q8_0/q4_0"}
    assert KV_CACHE.get(Row(record_of(record))) == "q8_0/q4_0"
