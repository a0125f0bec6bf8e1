"""Who has the most quality per GB, and when that cannot be said."""

import math
from pathlib import Path

import pytest

from helpers.records import reference, trial
from helpers.synthetic import synthetic
from helpers.typed import on_disk, typed
from qsweep.results.answers import best_lines
from qsweep.results.html.data import SweepData, front, groups, merge
from qsweep.results.labels import with_distinct_names
from qsweep.results.markdown import results_markdown
from qsweep.results.record import Figures, Measurement
from qsweep.results.winner import MIN_WINDOWS, contender, decide, says_nothing, sentence
from qsweep.tracking.mlflow.runs import sweep_run

best_lines, groups, merge, with_distinct_names, results_markdown, sweep_run = map(
    on_disk, (best_lines, groups, merge, with_distinct_names, results_markdown, sweep_run)
)


def one(key, ratio, half, size_gb=1.0, *, windows=40, setting="", **more):
    """Somebody with a ratio whose logarithm lies within ``half``."""
    quality = 1 - math.log(ratio) / math.log(1.2)
    figures = {
        "ppl_ratio": ratio,
        "ppl_ratio_low": ratio * math.exp(-half),
        "ppl_ratio_high": ratio * math.exp(half),
        "size_gb": size_gb,
        "quality_per_gb": quality / size_gb if quality > 0 else quality,
        "windows": windows,
    }
    return contender(key, f"trial {key}", figures | more, setting)


def nothing_told(*_):
    """Of no two trials windows tell which is better."""
    return False


def test_a_lead_beyond_noise_makes_a_winner():
    decision = decide([one("b", 1.10, 0.005), one("a", 1.02, 0.005)])
    assert (decision.leader, decision.winner, decision.open) == ("a", "a", None)
    assert sentence(decision, "trial a") == "trial a"


@pytest.mark.parametrize(("gap", "open_"), [(0.0139, True), (0.0143, False)])
def test_a_lead_counts_from_the_root_of_both_half_widths_squares_on(gap, open_):
    # two half-widths of 0.01: the difference is known to sqrt(2) * 0.01
    found = decide([one("a", 1.05, 0.01), one("b", 1.05 * math.exp(gap), 0.01)])
    assert (found.winner is None) is open_ and found.tied == ()
    assert not open_ or "trial b is within noise" in found.open


def test_the_smallest_of_a_tie_leads():
    large, small = one("large", 1.050, 0.01, 1.0), one("small", 1.058, 0.01, 0.99)
    found = decide([large, small], nothing_told)
    assert found.winner == "small" and found.tied == ("large",)
    assert (
        "trial large cannot be told from it in quality, and none of them is smaller" in found.note
    )
    # but not where windows tell the two apart, nor where the smaller one was measured badly
    assert decide([large, small], lambda *_: True).leader == "large"
    hardly = one("small", 1.058, 0.01, 0.99, windows=3)
    assert decide([large, hardly], nothing_told).leader == "large"


def test_a_tie_is_no_reason_why_the_seed_would_decide():
    draws = [one("d0", 1.020, 0.001, 1.0, setting="s"), one("d1", 1.021, 0.001, 1.0, setting="s")]
    larger = one("m", 1.005, 0.001, 1.05)
    found = decide([*draws, larger], nothing_told)
    assert found.leader == "d0" and found.open is None


def test_windows_tie_what_intervals_do_not():
    better, worse = one("a", 1.02, 0.001), one("b", 1.05, 0.001)
    assert decide([better, worse]).tied == ()
    assert decide([better, worse], nothing_told).tied == ("b",)


def test_in_the_silent_zone_the_smallest_has_the_most_quality():
    def close(silent):
        return [
            one("a", 1.001, 0.0001, 1.00, silent=silent),
            one("b", 1.009, 0.0001, 0.97, silent=silent),
        ]

    assert decide(close(True)).winner == "b"
    assert decide(close(False)).winner == "a"


def test_the_rest_of_those_within_noise_are_counted():
    found = decide([one("a", 1.050, 0.02), one("b", 1.051, 0.02), one("c", 1.052, 0.02)])
    assert "trial b and 1 more are within noise" in found.open
    assert "measure more text" in found.open


@pytest.mark.parametrize("windows", [1, 2, 3, MIN_WINDOWS - 1])
def test_nothing_wins_on_a_handful_of_windows(windows):
    found = decide([one("a", 1.0, 1e-6, windows=windows, windows_cut=True)])
    assert found.leader == "a" and found.winner is None
    assert str(windows) in found.open and "raise eval.max_windows" in found.open
    text = decide([one("a", 1.0, 1e-6, windows=windows)]).open
    assert "eval.max_windows" not in text and "corpus=" in text
    assert sentence(found, "trial a").startswith("no winner: trial a leads, but ")


def test_who_stopped_by_its_interval_is_told_to_narrow_it():
    rivals = [one("a", 1.02, 0.01, stopped=True), one("b", 1.021, 0.01)]
    assert "give a narrower eval.until, or leave it out" in decide(rivals).open


def test_enough_windows_are_enough():
    assert decide([one("a", 1.0, 1e-6, windows=MIN_WINDOWS)]).winner == "a"
    # a study of before windows were noted, and one whose interval is not known
    assert decide([one("a", 1.0, 1e-6, windows=None)]).winner == "a"


def test_what_a_mean_over_draws_lacks_may_be_draws():
    rival = one("b", 1.03, 0.01)
    assert (
        "give more seeds, or measure more text"
        in decide([one("a", 1.02, 0.01, draws=4), rival]).open
    )
    assert "seeds" not in decide([one("a", 1.02, 0.01), rival]).open
    few = decide([one("a", 1.02, 0.01, draws=4, windows=3), rival]).open
    assert "3 windows decide nothing" in few and "seeds" not in few


def test_an_interval_wider_than_all_verdicts_says_nothing():
    wide = one("a", 1.0, 0, ppl_ratio_low=0.549, ppl_ratio_high=1.812)
    assert "0.549 to 1.812" in decide([wide]).open
    assert says_nothing(wide) and not says_nothing(one("b", 1.0, 0.09))


def test_a_rival_of_unknown_interval_cannot_be_beaten():
    rival = one("b", 1.15, 0.001, ppl_ratio_low=None, ppl_ratio_high=None)
    assert decide([one("a", 1.01, 0.001), rival]).winner is None
    assert decide([one("a", 1.01, 0.001), one("b", 1.15, 0.001)]).winner == "a"


def test_size_counts_as_it_is_and_a_tie_is_told():
    assert decide([one("a", 1.02, 0.001, 1.0), one("b", 1.02, 0.001, 1.1)]).winner == "a"
    assert decide([one("a", 1.0, 0.0), one("b", 1.0, 0.0)]).winner is None
    assert decide([one("a", 1.0, 0.0), one("b", 1.0, 0.0)], nothing_told).winner == "a"
    # beyond the scale quality is no longer per GB, and still has an order
    assert decide([one("a", 1.3, 0.01), one("b", 1.6, 0.01)]).winner == "a"


def test_what_has_no_quality_contends_for_nothing():
    assert contender("a", "a", {"quality_per_gb": None, "size_gb": 1.0}) is None
    assert contender("a", "a", {"quality_per_gb": math.nan, "size_gb": 1.0}) is None
    assert decide([]).leader is None


def test_the_luckiest_draw_is_called_that():
    draws = [one(f"{i}", 1.02 + 0.01 * i, 0.001, setting="gptq 3-bit") for i in range(4)]
    found = decide(draws)
    assert found.winner == "0"
    assert "luckiest of 4 draws" in found.note and "1.020 to 1.050" in found.note
    assert "luckiest" in sentence(found, "trial 0")


def test_a_draw_wins_against_another_setting_only_if_all_draws_do():
    draws = [one("lucky", 1.02, 0.001, setting="s"), one("unlucky", 1.08, 0.001, setting="s")]
    assert decide([*draws, one("other", 1.10, 0.001)]).winner == "lucky"
    found = decide([*draws, one("other", 1.05, 0.001)])
    assert found.winner is None and "the seed decides" in found.open


def test_all_that_is_shown_of_a_sweep_says_the_same(tmp_path):
    from qsweep.results.answers import answers
    from qsweep.results.html.answer import answers as page_answers

    for windows, decided in ((141, True), (2, False)):
        records = synthetic(2)
        for record in records:
            for measurement in record["measurements"]:
                measurement["facts"] |= {"windows": windows, "overrides": {"max_windows": windows}}
        (answer,) = answers(typed(records))
        assert answer.is_best is decided
        run = sweep_run("s", "c", records, tmp_path, complete=True)
        (group,) = groups(records)
        said = {s.question: s.answer for s in page_answers(group)}
        texts = (results_markdown("s", records), run.tags["answer"], said["Best quality per GB"])
        for text in texts:
            assert ("no winner" in text) is not decided
            assert ("raise eval.max_windows" in text) is not decided
        assert said["Smallest acceptable"].startswith("open:") is not decided
        figures = {point.name for point in run.metrics}
        assert ("best_quality_per_gb" in figures) is decided
        assert (run.tags["best_trial"] == "none") is not decided


@pytest.mark.parametrize("end", [0.0, -0.5, math.nan, math.inf, None])
def test_an_interval_without_ends_decides_nothing_and_ends_nothing(end):
    found = decide([one("a", 1.02, 0.001, ppl_ratio_low=end), one("b", 1.10, 0.001)])
    assert found.leader == "a" and found.winner is None


@pytest.mark.parametrize("ratio", [math.nan, math.inf, 0.0, -1.0, None])
def test_what_has_no_ratio_contends_for_nothing(ratio):
    assert contender("a", "trial a", {"ppl_ratio": ratio, "quality_per_gb": 1.0}) is None


# Rows of a sweep.


def measured(name, ratio, key, corpus="python_docs", **facts):
    made = trial(name, name.split()[0], ratio, bits=4) | {"key": key}
    (measurement,) = made["measurements"]
    measurement["corpus"] = corpus
    measurement["facts"] = measurement["facts"] | facts
    return made


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"windows": 8}, {"windows": 32}, ("windows 8", "windows 32")),
        ({"context": 64}, {"context": 128}, ("context 64", "context 128")),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}, ("dtype float32", "dtype bfloat16")),
        ({"device_type": "cpu"}, {"device_type": "cuda"}, ("device type cpu", "device type cuda")),
        ({"corpus": "a"}, {"corpus": "b", "fingerprint": "x"}, ("corpus a", "corpus b")),
        ({"fingerprint": "x"}, {"fingerprint": "y"}, ("fingerprint x", "fingerprint y")),
    ],
)
def test_what_was_measured_otherwise_has_an_answer_of_its_own(first, second, words):
    records = [
        reference(),
        measured("gptq 4-bit", 1.05, "a", **first),
        measured("awq 4-bit", 1.01, "b", **second),
        measured("rtn 4-bit", 1.11, "c", **second),
    ]
    lines = best_lines(records)
    assert len(lines) == 2
    for word, name in zip(words, ("gptq", "awq"), strict=True):
        assert f"most quality per GB ({word}): pocket {name} 4-bit (yes)" in lines
    run = sweep_run("s", "", records, Path("/nowhere"), complete=True)
    assert run.tags["best_trial"] == "none"
    # alike, and one is the best again
    alike = [records[0], records[2], records[3]]
    assert best_lines(alike) == ["most quality per GB: pocket awq 4-bit (yes)"]


def test_three_ways_are_told_apart_though_two_differ_in_their_tokens_alone():
    ways = [
        {"windows": 8, "fingerprint": "x"},
        {"windows": 8, "fingerprint": "y"},
        {"windows": 16, "fingerprint": "z"},
    ]
    records = [measured("gptq 4-bit", 1.05, str(n), **way) for n, way in enumerate(ways)]
    assert len({group.title for group in groups(records)}) == 3
    assert len({line.partition(":")[0] for line in best_lines(records)}) == 3


def test_a_page_tells_every_way_that_its_rows_were_measured_in():
    records = [
        measured("gptq 4-bit", 1.05, "a", windows=8, context=64),
        measured("gptq 4-bit", 1.05, "b", windows=16, context=64),
    ]
    text = results_markdown("s", records)
    assert "windows 8 or 16; context 64;" in text


def test_what_ran_for_a_check_is_in_the_table_and_on_no_front():
    check = measured("rtn 4-bit", 1.001, "check") | {"implied": True, "sweep": "one"}
    check["artifact"]["size_gb"] = 0.001
    own = measured("gptq 4-bit", 1.02, "own") | {"sweep": "one"}
    (group,) = groups([check, own])
    assert [row.key for row in group.rows] == ["check", "own"]
    assert [row.key for row in front(group.quantized)] == ["own"]
    assert [row.key for row in group.primary_rows] == ["own"]
    run = sweep_run("s", "", [reference(), check, own], Path("/nowhere"), complete=True)
    assert not [point.name for point in run.metrics if "rtn" in point.name]
    # asked for by another sweep, it is one of the results
    asked = check | {"implied": False, "sweep": "two"}
    for order in ([check, asked], [asked, check]):
        sweeps = [SweepData(record["sweep"], "", [record]) for record in order]
        (merged,) = merge(sweeps)
        assert merged.implied is False


def test_a_shorthand_is_no_second_difference():
    made = []
    for place in ("a", "b"):
        record = measured("gptq 4-bit", 1.05, place)
        text = {"name": "t.txt", "path": f"/{place}/t.txt"}
        record["config"] = {"corpus": {"file": text, "path": text["path"], "field": "text"}}
        made.append(record)
    assert [r.name for r in with_distinct_names(made)] == [
        "pocket gptq 4-bit path=a/t.txt",
        "pocket gptq 4-bit path=b/t.txt",
    ]


@pytest.mark.parametrize(
    ("windows", "overrides", "cut"),
    [
        (8, {"max_windows": 8}, True),
        (29, {"max_windows": 10**11}, False),
        (29, {"context": 64}, False),
        (29, {}, False),
        (29, None, False),
        (None, {"max_windows": 4}, True),
        (8, {"max_windows": "8"}, False),
    ],
)
def test_a_most_that_a_text_does_not_reach_cuts_nothing(windows, overrides, cut):
    facts = {"windows": windows, "overrides": overrides}
    assert Measurement("c", "p", Figures(), facts=facts).windows_cut is cut
    # nor does it matter how many of these were read
    facts = {"windows": 2, "overrides": overrides, "whole": {"windows": windows}}
    assert Measurement("c", "p", Figures(), facts=facts).windows_cut is cut


def test_groups_of_one_text_are_called_by_what_sets_them_apart():
    records = [
        measured("gptq 4-bit", 1.05, "a", windows=8),
        measured("gptq 4-bit", 1.05, "b", windows=16),
        measured("gptq 4-bit", 1.05, "c", corpus="code"),
    ]
    titles = {group.title for group in groups(records)}
    assert titles == {
        "pocket on python_docs (paper, windows 8)",
        "pocket on python_docs (paper, windows 16)",
        "pocket on code (paper)",
    }
