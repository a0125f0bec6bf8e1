"""The panels of what serving adds: which trials have a place in them, and what they say."""

import json

import pytest

from helpers.records import reference, trial
from helpers.typed import typed
from qsweep.results.html import served
from qsweep.results.html.data import groups
from qsweep.results.html.vega import svg

QUARTERS = ("q1", "q2", "q3", "q4")


def made(name, kld, activations=None, cache=None, number=None):
    record = trial(name, "rtn", 1.0 + kld, 0.01, bits=4)
    record["options"] |= {"format": number} if number else {}
    metrics = record["measurements"][0]["metrics"]
    metrics |= {"kld": kld, "kld_stderr": kld / 10}
    total = kld
    for run, added in (("activations", activations), ("kv", cache)):
        if added is not None:
            total += added
            metrics |= {
                f"kld_{run}": total, f"kld_{run}_stderr": kld / 10, f"kld_{run}_added": added,
                f"kld_{run}_added_low": added - 0.001, f"kld_{run}_added_high": added + 0.001,
            }  # fmt: skip
    if cache is not None:
        metrics |= {f"kld_{q}": kld for q in QUARTERS}
        metrics |= {f"kld_kv_{q}": kld + cache * n / 2 for n, q in enumerate(QUARTERS, 1)}
    return record


def group(*records):
    (found,) = groups(typed([reference(), *records]))
    return found


def labels(panel):
    return [line[0] for line in panel.lines]


def test_without_a_served_run_there_is_no_panel():
    plain = group(made("plain", 0.02))
    assert served.stages(plain) is None and served.quarters(plain) is None


def test_only_trials_with_a_served_run_are_in_it_least_first():
    panel = served.stages(group(made("a", 0.03, 0.05), made("b", 0.02, 0.01), made("c", 0.001)))
    assert labels(panel) == ["b", "a"]
    assert panel.headings == ("trial", "weights", "+ activations")
    assert panel.lines[0][2] == "+0.01 (+0.009 to +0.011)"
    assert {point["stage"] for point in panel.spec["data"]["values"]} == {
        "weights",
        "+ activations",
    }


def test_a_cache_without_activations_stands_on_the_weights_alone():
    panel = served.stages(group(made("a", 0.03, 0.05, 0.002), made("b", 0.02, cache=0.004)))
    assert panel.headings == ("trial", "weights", "+ activations", "+ KV cache")
    rows = {line[0]: line[1:] for line in panel.lines}
    assert rows["b"][1] == "" and rows["b"][2].startswith("+0.004")


def test_a_negative_difference_is_shown_as_one():
    panel = served.stages(group(made("a", 0.03, -0.0005)))
    assert panel.lines[0][2].startswith("-0.0005")


def test_of_many_trials_each_number_format_keeps_its_best():
    many = [made(f"w8a8 {n}", 0.001 + n / 1e5, 0.001, number="w8a8") for n in range(40)]
    panel = served.stages(group(*many, made("nvfp4", 0.3, 0.1, number="nvfp4")))
    assert len(panel.lines) == 24 and labels(panel)[-1] == "nvfp4"
    assert "24 of 41 trials" in panel.note


@pytest.mark.parametrize("kld", [0.0, 0.02])
def test_the_pictures_can_be_drawn(kld):
    found = group(made("a", kld, 0.05, 0.01), made("b", 1.5, 0.2, 0.3))
    for panel in (served.stages(found), served.quarters(found)):
        assert "NaN" not in json.dumps(panel.spec)
        assert "<svg" in svg(panel.spec)


def test_quarters_are_of_trials_with_a_cache():
    panel = served.quarters(group(made("a", 0.03, 0.05), made("b", 0.02, cache=0.004)))
    values = panel.spec["data"]["values"]
    assert {value["label"] for value in values} == {"b"} and len(values) == 8
    late = [v["kld"] for v in values if v["quarter"] == "last"]
    assert late == [pytest.approx(0.028), pytest.approx(0.02)]
