"""Comparisons at equal options, and references that mean nothing."""

import math

import pytest

from helpers.records import reference, shown, trial
from helpers.typed import on_disk, table, typed
from qsweep.evaluate.verdicts import predicts_nothing
from qsweep.results.answers import answers
from qsweep.results.checks import check, grid_of
from qsweep.results.columns.derived import status_word
from qsweep.results.html.data import SweepData
from qsweep.results.html.page import render
from qsweep.results.judged import judged
from qsweep.results.markdown import results_markdown
from qsweep.sweep.baselines import missing_baselines
from qsweep.sweep.config import trial_config
from qsweep.tracking.mlflow.runs import trial_run

answers, check, results_markdown, render, status_word, judged, trial_run = map(
    on_disk, (answers, check, results_markdown, render, status_word, judged, trial_run)
)

# --- equal options -------------------------------------------------------------------------------


def rounded(sym, **more):
    options = {"bits": 4, "group_size": 128, "sym": sym}
    return trial(f"rtn 4-bit sym={sym}", "rtn", 1.05, 0.001, options=options, **more)


def solved(method="gptq", ratio=1.10, **more):
    options = {"bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    return trial(f"{method} 4-bit", method, ratio, 0.001, options=options | more)


def test_a_baseline_of_another_grid_is_none():
    assert any("the baseline" in line for line in check([rounded(True), solved()]))
    for other in (
        {"sym": False},
        {"group_size": 64},
        {"bits": 3},
        {"desc_act": True},
        {"scale_search": "mse"},
    ):
        assert check([rounded(True), solved(**other)]) == [], other


def test_the_baseline_is_the_one_of_the_same_grid_whatever_else_there_is():
    worse = rounded(False) | {"key": "asym"}
    lines = check([worse, rounded(True), solved(ratio=1.08)])
    assert len(lines) == 1 and "rtn 4-bit sym=True, the baseline" in lines[0]


def test_a_grid_is_none_that_rounding_lacks():
    assert grid_of({"bits": 4, "group_size": -1, "sym": True, "desc_act": True}) is not None
    assert grid_of({"bits": 4, "type": "Q4_K_M"}) is None
    assert grid_of({}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"calibration": {"seed": 1}}},
        {"config": {"calibration": {"num_samples": 8}}},
        {"calibration": "c4"},
        {"backend": "gptqmodel"},
        {"options": {"bits": 8, "group_size": 128, "sym": True, "damp_percent": 0.1}},
    ],
)
def test_more_bits_are_compared_at_otherwise_equal_options_only(change):
    seen = {"calibration": "python", "config": {"calibration": {"seed": 0}}}
    three = trial("gptq 3-bit", "gptq", 1.02, 0.001, bits=3, **seen)
    eight = trial("gptq 8-bit", "gptq", 1.05, 0.001, bits=8, **seen)
    assert any("is worse than" in line for line in check([three, eight]))
    assert not any("is worse than" in line for line in check([three, eight | change]))


def test_ratios_on_other_windows_are_not_compared():
    three = trial("gptq 3-bit", "gptq", 1.02, 0.001, bits=3)
    eight = trial("gptq 8-bit", "gptq", 1.05, 0.001, bits=8)
    eight["measurements"][0]["facts"] = {"windows": 8, "fingerprint": "other"}
    assert not any("is worse than" in line for line in check([three, eight]))


def test_the_table_says_sym_where_rows_differ_in_it_and_nowhere_else():
    records = [reference(), rounded(False), solved()]
    for text in (shown(records, 110, terminal=False), results_markdown("s", records)):
        assert "gptq 4-bit sym " in text and "rtn 4-bit sym=False asym " in text
    assert " sym " not in shown([reference(), solved()], 110, terminal=False)


# --- the partner that a comparison lacks ---------------------------------------------------------


def configured(pocket_dir, target, **options):
    return trial_config(
        {
            "model": {"name": "pocket", "path": str(pocket_dir)},
            "quant": {"_target_": f"qsweep.quantizers.{target}", "bits": 4} | options,
            "calibration": {"name": "python", "source": "python"},
            "corpus": {"python_docs": {"source": "python"}},
            "eval": {"tasks": ["arc_easy"], "speed": True},
            "device": "cpu",
        }
    )


RTN, GPTQ, AWQ = "rtn.RTN", "native.NativeGPTQ", "native.NativeAWQ"


def test_rounding_gets_the_partner_that_a_comparison_lacks(pocket_dir):
    both = [configured(pocket_dir, RTN), configured(pocket_dir, GPTQ)]
    (partner,) = missing_baselines(both)
    assert partner.quant.options() == {"bits": 4, "group_size": 128, "sym": True}
    # no more is run than is compared
    assert (partner.eval.tasks, partner.eval.speed) == ((), False)
    again = trial_config(partner.resolved)
    assert (again.quant, again.eval) == (partner.quant, partner.eval)
    assert missing_baselines([*both, partner]) == []
    assert missing_baselines([*both, both[1]]) == [partner]


@pytest.mark.parametrize(
    "trials",
    [
        [(GPTQ, {}), (AWQ, {})],
        [(RTN, {}), (AWQ, {})],
        [(RTN, {"bits": 3}), (GPTQ, {})],
        [(RTN, {"group_size": 64}), (GPTQ, {})],
        [(RTN, {}), (GPTQ, {"desc_act": True})],
        [(RTN, {"sym": True}), (GPTQ, {})],
    ],
)
def test_nothing_runs_that_no_check_needs(pocket_dir, trials):
    made = [configured(pocket_dir, target, **options) for target, options in trials]
    assert missing_baselines(made) == []


def test_what_ran_for_a_comparison_is_marked_and_wins_nothing():
    partner = rounded(True, implied=True, size_gb=0.001)
    records = [reference(), partner, solved(ratio=1.02)]
    assert answers(records)[0].record.method == "gptq"
    text = shown(records, 120, terminal=False)
    assert "(check)" in text and "most quality per GB: pocket gptq 4-bit (yes)" in text
    assert [row["implied"] for row in table(records) if row["method"] == "rtn"] == [True]


# --- a reference that means nothing --------------------------------------------------------------


@pytest.mark.parametrize(
    ("ppl", "vocabulary", "nothing"),
    [
        (math.nan, 4096, True),
        (math.inf, None, True),
        (4.5e13, 4096, True),
        (4.5e13, None, True),
        (4096.0, 4096, True),
        (3900.0, 4096, True),
        (31.0, 4096, False),
        (900.0, 4096, False),
        (5000.0, 151936, False),
        (31.0, None, False),
    ],
)
def test_a_perplexity_of_chance_predicts_nothing(ppl, vocabulary, nothing):
    assert bool(predicts_nothing(ppl, vocabulary)) is nothing


def at(ppl, *, stored=True, vocabulary=4096):
    """A reference of that perplexity, and a trial that keeps it to 1 %."""
    records = [reference(vocab_size=vocabulary), trial("gptq 4-bit", "gptq", 1.01, bits=4)]
    records[1]["vocab_size"] = vocabulary
    for record, ratio in zip(records, (1.0, 1.01), strict=True):
        measurement = record["measurements"][0]
        measurement["metrics"] |= {"ppl": ppl * ratio, "kld": 0.0}
        if stored:
            measurement["reference_ppl"] = ppl
    return records


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("ppl", [4.5e13, 4096.0, math.inf, math.nan])
def test_nothing_is_claimed_against_a_reference_that_predicts_nothing(ppl, stored):
    if math.isnan(ppl) and not stored:
        return  # then nobody can tell whose fault it is
    records = at(ppl, stored=stored)
    lines = check(records)
    assert len(lines) == 1 and "predicts nothing" in lines[0] and "no verdict" in lines[0]
    for row in table(records):
        assert row["verdict"] is None and "quality" not in row and "quality_per_gb" not in row
        assert "predicts nothing" in row["no_verdict"]
    assert answers(records) == []
    for text in (shown(records, 120, terminal=False), results_markdown("s", records)):
        assert "most quality per GB" not in text and "no verdict" in text
        assert "|yes" not in text and "| yes" not in text
    run = trial_run(records[1])
    assert run.tags["verdict"] == "none" and "predicts nothing" in run.tags["no_verdict"]
    assert not any("quality" in point.name for point in run.metrics)
    page = render([SweepData("s", "c", records)])
    assert "predicts nothing" in page and ">yes<" not in page and "Quality against" not in page


def test_a_good_reference_leaves_a_record_as_it_is_and_judging_twice_is_judging_once():
    good, bad = trial("gptq 4-bit", "gptq", 1.01, bits=4), at(4.5e13)[1]
    assert judged(good := typed(good)) is good
    assert judged(judged(bad)) == judged(bad)
    assert status_word(judged(bad)) == "no verdict"


def test_a_broken_quantized_model_of_a_good_reference_is_problematic():
    record = trial("gptq 2-bit", "gptq", 1.5, bits=2)
    measurement = record["measurements"][0]
    measurement["metrics"] |= {"ppl": math.inf, "ppl_ratio": math.inf}
    measurement |= {"reference_ppl": 18.0, "verdict": "problematic"}
    assert status_word(judged(record)).startswith("problematic")


# --- calibration ---------------------------------------------------------------------------------


def test_a_calibration_text_that_repeats_itself_is_told():
    seen = {"calibration_tokens": {"asked": 63232, "distinct": 496}, "calibration": "mine"}
    short = trial("gptq 4-bit", "gptq", 1.05, bits=4, **seen)
    (line,) = check([short])
    assert "496 different tokens where 63232 were asked for (0.8 %)" in line and "mine" in line
    (row,) = table([short])
    assert (row["calibration_tokens"], row["calibration_tokens_distinct"]) == (63232, 496)
    fine = short | {"calibration_tokens": {"asked": 16384, "distinct": 15000}}
    assert check([fine]) == [] and check([short | {"calibration_tokens": None}]) == []


def routed(*tokens, all_tokens=False, width=128):
    modules = {"layers.0.mlp.experts": {"width": width, "tokens": tokens}}
    told = {"expert_coverage": {"all_tokens": all_tokens, "modules": modules}}
    record = trial("gptq 4-bit", "gptq", 1.05, bits=4, calibration="mine")
    record["config"] = record.get("config", {}) | {"calibration": {"num_samples": 16}}
    return record | {"artifact": record["artifact"] | {"details": told}}


def test_experts_that_were_sent_too_few_tokens_are_told_with_how_many_would_do():
    short = routed(50, 64, 300, 400)
    (line,) = check([short])
    assert "2 of 4 experts were sent fewer tokens than they have inputs, 0 of them none" in line
    # of the least used 50 times as many tokens again are 128
    assert "calibration.num_samples=41 would do" in line
    (row,) = table([short])
    names = ("expert_tokens_median", "expert_tokens_lowest", "experts_unseen", "experts_short")
    assert [row[name] for name in names] == [182, 50, 0, 0.5]


@pytest.mark.parametrize(
    "record",
    [
        routed(128, 300),
        routed(50, 64, all_tokens=True),
        # A twentieth of them may be of no use to anybody.
        routed(0, *[128] * 19),
    ],
)
def test_experts_that_were_sent_enough_are_not(record):
    assert check([record]) == []


def test_no_amount_of_text_is_named_for_experts_that_nothing_reaches():
    (line,) = check([routed(0, 0, 0)])
    assert "num_samples" not in line and "3 of them none: text of another kind" in line
    # Nor one that would not be drawn.
    seen = {"calibration_tokens": {"asked": 2**20, "distinct": 2**20}}
    (line,) = check([routed(1, 1, 300, 400) | seen])
    assert "num_samples" not in line


def test_a_cache_that_saturates_is_named():
    seen = {
        "layers": 2,
        "saturated": 0.01,
        "saturated_most": 0.04,
        "saturated_layer": "keys of layer 1",
    }
    record = rounded(True)
    record["measurements"][0]["served"] = [{"name": "kv", "facts": {"kv_cache": seen}}]
    (line,) = check([record])
    assert "4 % of the keys of layer 1 is beyond what its cache can hold" in line
    seen["saturated_most"] = 0.0001
    assert check([record]) == []


def test_caches_that_saturate_in_one_sweep_are_told_apart():
    facts = {"saturated": 0.01, "saturated_most": 0.04, "saturated_layer": "keys of layer 1"}
    records = [
        rounded(True, key=cache, config={"kv_cache": cache}) for cache in ("none", "fp8", "nvfp4")
    ]
    activations = {
        "name": "activations",
        "key": "shared",
        "facts": {"activations": facts | {"saturated_layer": "model.layers.1.mlp.down_proj"}},
    }
    for record in records:
        cache = {"name": "kv", "key": record["key"], "facts": {"kv_cache": facts}}
        runs = [activations, cache] if record["key"] != "none" else [activations]
        record["measurements"][0]["served"] = runs
    of_activations, *of_caches = check(records)
    assert "what goes into model.layers.1.mlp.down_proj is beyond" in of_activations
    assert ["kv_cache=fp8" in of_caches[0], "kv_cache=nvfp4" in of_caches[1]] == [True, True]
    assert len(of_caches) == 2
