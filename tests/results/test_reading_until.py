"""Rows that stopped reading when their interval was narrow enough, among others."""

import csv
import io
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers.measured import TOKENS, WINDOWS, measured_trial
from helpers.records import reference
from helpers.typed import typed
from qsweep.evaluate.intervals import half_width, sequence_p, sequence_t
from qsweep.evaluate.until import reading_order
from qsweep.results.columns.derived import stopped_ends
from qsweep.results.columns.table import KLD_VERDICT
from qsweep.results.comparable import families
from qsweep.results.html import served
from qsweep.results.html.data import groups
from qsweep.results.html.health import _protocol
from qsweep.results.markdown import results_markdown
from qsweep.results.peers import compared
from qsweep.results.record import Figures, Row
from qsweep.results.rows import rows, to_csv
from qsweep.results.ties import ties, with_standings
from qsweep.results.windows import laid_out, shared, windows_of
from qsweep.search.objectives import spans


@pytest.fixture
def measured(tmp_path):
    return partial(measured_trial, tmp_path, noise=0.002)


def stopped(record, read, *, reached=True):
    """A record of before that read so many windows in the order of ``eval.until``."""
    (measurement,) = record["measurements"]
    file = f"{measurement['file']}/arrays.safetensors"
    arrays, numbers = load_file(file), np.array(reading_order(WINDOWS)[:read])
    tokens = arrays["token_kld"].reshape(WINDOWS, TOKENS)[numbers].ravel()
    chosen = {name: arrays[name][numbers] for name in ("window_nll", "window_tokens")}
    save_file({**chosen, "token_kld": tokens, "window_number": numbers}, file)
    whole = {"windows": WINDOWS, "fingerprint": "all of it"}
    until = {"rule": "ratio ±1 %", "reached": reached, "seed": 0, "first_look": 12}
    measurement["facts"] = {
        **{"windows": read, "tokens_scored": read * TOKENS, "fingerprint": f"first {read}"},
        **{"until": until, "whole": whole},
    }
    low, high = measurement["metrics"]["kld"] - 0.001, measurement["metrics"]["kld"] + 0.001
    measurement["metrics"] |= {"kld_low": low, "kld_high": high}
    return record


def of_whole(record):
    record["measurements"][0]["facts"] = {"windows": WINDOWS, "fingerprint": "all of it"}
    return record


@pytest.fixture
def some(measured):
    """Two that stopped, at different numbers of windows, and one that read all."""
    return [
        stopped(measured("a", "gptq", 0.0400, 1.0), 12),
        stopped(measured("b", "awq", 0.0405, 1.1, seed=1), 18),
        of_whole(measured("c", "rtn", 0.0600, 0.9, seed=2)),
    ]


def test_they_are_of_one_family_with_rows_that_read_all(some):
    found = [Row(record, record.primary) for record in typed(some)]
    assert [len(family) for family in families(found)] == [3]
    assert len(groups(typed([of_whole(reference()), *some]))) == 1


def test_a_pair_is_compared_on_the_windows_that_both_read_at_any_stop(some):
    a, b, c = (Row(record, record.primary, record.name) for record in typed(some))
    mine, its = shared(windows_of(a), windows_of(b))
    assert (
        sorted(mine.number) == sorted(reading_order(WINDOWS)[:12])
        and (mine.number == its.number).all()
    )
    d = (mine.nll - its.nll) / TOKENS
    half = half_width(d.std(ddof=1) / math.sqrt(12), 12, sequential=True)
    found = compared(a, b, windows_of)
    assert math.log(found.ppl_ratio_high) == pytest.approx(d.mean() + half)
    # whoever read all windows is cut to those that the other read
    assert len(shared(windows_of(b), windows_of(c))[0]) == 18
    assert shared(windows_of(c), windows_of(c))[0].number is None


def test_ranks_are_claimed_by_p_values_that_hold_at_any_stop(some):
    found = [Row(record, record.primary) for record in typed(some)]
    kept, laid = laid_out([(row, windows_of(row)) for row in found])
    assert kept == found and laid.read.sum(1).tolist() == [12, 18, 24]
    assert laid.sequential.tolist() == [True, True, False]
    told = ties(found)
    assert told.tell("key-a", "key-c") and told.tell("key-b", "key-c")
    d = (laid.models[0].sums - laid.models[1].sums)[0, laid.read[0]] / TOKENS
    t = d.mean() / (d.std(ddof=1) / math.sqrt(12))
    p = sequence_p(np.array([t]), np.array([12]))[0]
    assert told.tell("key-a", "key-b") == (p < 0.05)


def test_fewer_than_eight_shared_windows_tell_nothing(measured):
    few = stopped(measured("few", "gptq", 0.5, 1.0), 6)
    rows_ = [Row(r, r.primary) for r in typed([few, of_whole(measured("all", "rtn", 0.01, 1.0))])]
    assert ties(rows_).standings == {}


def test_a_text_of_other_windows_is_left_out(measured):
    other = measured("other", "gptq", 0.5, 1.0)
    file = f"{other['measurements'][0]['file']}/arrays.safetensors"
    arrays = load_file(file)
    save_file({**arrays, "window_tokens": arrays["window_tokens"] + 1}, file)
    found = [Row(r, r.primary) for r in typed([measured("a", "rtn", 0.1, 1.0), other])]
    kept, _ = laid_out([(row, windows_of(row)) for row in found])
    assert [row.key for row in kept] == ["key-a"]


def test_tables_say_how_many_windows_of_how_many_and_whose_interval(some):
    some[1]["measurements"][0]["facts"]["until"]["reached"] = False
    records = typed([of_whole(reference()), *some])
    page = results_markdown("t", records)
    assert "2 trials read windows, in a random order, until ratio ±1 %" in page
    assert "of 1 the whole text did not make it so" in page
    assert "12 of 24" in page and "18 of 24" in page and "windows 24; " in page
    assert "0.0400 (0.0390-0.0410)" in page
    (line,) = [r for r in csv.DictReader(io.StringIO(to_csv(rows(records)))) if r["key"] == "key-a"]
    assert (line["windows"], line["windows_of"], line["kld_low"]) == ("12", "24", "0.039")
    # nothing of it is said where nobody stopped
    plain = results_markdown("t", typed([of_whole(reference()), some[2]]))
    assert "random order" not in plain and "windows read" not in plain


def test_rows_that_all_read_everything_are_ranked_as_ever(measured):
    records = typed([measured("a", "gptq", 0.04, 1.0), measured("c", "rtn", 0.06, 0.9, seed=2)])
    found = with_standings([Row(record, record.primary) for record in records])
    assert [row.standing.text for row in found] == ["1", "2"]


def test_the_page_tells_the_protocol_of_the_whole_text(some):
    for base in ([], [of_whole(reference())]):
        (group,) = groups(typed([*some[:2], *base, some[2]]))
        told = dict(_protocol(group))
        assert (told["windows"], told["fingerprint"]) == (str(WINDOWS), "all of it")
    (group,) = groups(typed(some[:2]))
    told = dict(_protocol(group))
    assert told["windows"] == str(WINDOWS) and "tokens scored" not in told


def test_a_bar_and_a_bound_are_the_sequences(some):
    record = typed(some)[0]
    row = Row(record, record.primary)
    kld = record.primary.metrics["kld"]
    assert spans(record, ("kld",))["kld"] == pytest.approx((kld - 0.001, kld, kld + 0.001))
    (stage,) = served._stages(row)
    assert (stage["low"], stage["high"]) == pytest.approx((kld - 0.001, kld + 0.001))
    # of a run with its cache as served there are none among the figures, but an error
    more = replace(record.primary, metrics=Figures({"kld_kv": 0.2, "kld_kv_stderr": 0.01}))
    assert stopped_ends(more, "_kv")[1] == pytest.approx(0.2 + sequence_t(12) * 0.01)
    assert stopped_ends(typed(some)[2].primary) is None


@pytest.mark.parametrize(("half", "shown"), [(0.0005, "usually"), (0.02, "usually?")])
def test_a_verdict_is_open_by_the_sequences_interval(some, half, shown):
    metrics = some[0]["measurements"][0]["metrics"]
    metrics |= {"kld": 0.04, "kld_stderr": 1e-5, "kld_low": 0.04 - half, "kld_high": 0.04 + half}
    some[0]["measurements"][0]["verdict"] = "usually"
    (record,) = typed(some[:1])
    assert KLD_VERDICT.cell(Row(record, record.primary)) == shown
