"""The verdict by the divergence beside that by the ratio."""

import math

import pytest

from helpers.records import reference, trial
from helpers.typed import on_disk, table, typed
from qsweep.evaluate.verdicts import KLD_BOUNDS, SILENT_KLD, verdict_by_kld
from qsweep.results.columns.table import KLD_VERDICT
from qsweep.results.html.data import SweepData
from qsweep.results.html.page import render
from qsweep.results.markdown import results_markdown
from qsweep.results.record import Row

render, results_markdown = map(on_disk, (render, results_markdown))


def cell(ratio, kld, stderr=1e-5, windows=40, **more):
    record = trial("gptq 4-bit", "gptq", ratio, 0.001, bits=4, **more)
    (found,) = record["measurements"]
    found["metrics"] |= {"kld": kld, "kld_stderr": stderr}
    found["facts"]["windows"] = windows
    (record,) = typed([record])
    return KLD_VERDICT.cell(Row(record, record.primary))


@pytest.mark.parametrize(
    ("kld", "word"),
    [
        (0.0, "yes"), (0.01, "yes"), (0.0101, "usually"), (0.05, "usually"), (0.1, "marginal"),
        (0.11, "problematic"), (math.inf, "problematic"), (math.nan, "problematic"),
    ],
)  # fmt: skip
def test_the_words_and_their_bounds(kld, word):
    assert verdict_by_kld(kld) == word


def test_what_cannot_be_ranked_is_as_good_as_the_reference():
    assert KLD_BOUNDS[0] == (SILENT_KLD, "yes")


# As llama.cpp's own table has them: Llama-3-8B on WikiText-2.
@pytest.mark.parametrize(
    ("ratio", "kld", "shown"),
    [
        (1.0002, 0.00136, "yes"),
        (1.0279, 0.0313, "usually ≠ yes"),
        (1.1051, 0.102, "problematic ≠ usually"),
        (1.5645, 0.445, "problematic"),
    ],
)
def test_where_the_two_differ_both_are_told(ratio, kld, shown):
    assert cell(ratio, kld) == shown


def test_a_divergence_within_its_error_of_a_bound_is_open():
    assert cell(1.01, 0.005, stderr=0.0001) == "yes"
    # The bound is 2.023 standard errors away where the interval of 40 windows begins to hold it.
    assert cell(1.01, 0.0098, stderr=0.0000988) == "yes"
    assert cell(1.01, 0.0098, stderr=0.0000990) == "yes?"
    assert cell(1.01, 0.0098, stderr=None) == "yes?" == cell(1.01, 0.0098, windows=1)


def test_without_a_divergence_or_a_verdict_there_is_none():
    assert cell(1.01, None) == ""
    record = reference()
    assert KLD_VERDICT.cell(Row(typed(record), typed(record).primary)) == ""
    record = trial("gptq 4-bit", "gptq", 1.05, bits=4)
    record["measurements"][0] |= {"verdict": None, "no_verdict": "the reference predicts nothing"}
    assert KLD_VERDICT.cell(Row(typed(record), typed(record).primary)) == ""


def test_it_is_in_the_tables():
    records = [reference(), trial("gptq 4-bit", "gptq", 1.03, 0.001, bits=4)]
    records[1]["measurements"][0]["metrics"] |= {"kld": 0.2, "kld_stderr": 0.001}
    found = {row["method"]: row for row in table(records)}
    assert found["gptq"]["kld_verdict"] == "problematic" and not found["none"]["kld_verdict"]
    for text in (results_markdown("s", records), render([SweepData("s", "", typed(records))])):
        assert "by KLD" in text and "problematic ≠ yes" in text
