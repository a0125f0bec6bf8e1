"""What cannot be told apart is a tie, wherever it is shown."""

import csv
import io
import re
from functools import partial

import pytest

from helpers.measured import measured_trial
from helpers.records import reference, shown
from helpers.typed import typed
from qsweep.base.errors import ConfigError
from qsweep.evaluate.verdicts import SILENT_KLD
from qsweep.results.answers import answers, best_lines
from qsweep.results.beside import beside_others
from qsweep.results.html.data import SweepData
from qsweep.results.html.page import render
from qsweep.results.markdown import results_markdown
from qsweep.results.rows import ranked, rows, to_csv
from qsweep.results.ties import tell_of, with_standings
from qsweep.sweep.config import sweep_config


@pytest.fixture
def measured(tmp_path):
    return partial(measured_trial, tmp_path, noise=0.002)


@pytest.fixture
def sweep(measured):
    """Two that tie, one that is worse than both, and one that is worse than all."""
    return [
        reference(),
        measured("a", "gptq", 0.0401, 1.00),
        measured("b", "awq", 0.0400, 1.10, seed=1),
        measured("c", "rtn", 0.0600, 0.95, seed=2),
        measured("d", "rtn", 0.2000, 0.50, seed=3),
    ]


def ranks(records):
    found = with_standings(rows(typed(records)))
    return {row.key: row.standing.text for row in found if row.standing}


def test_every_pair_is_compared_on_its_own_windows(sweep):
    # their intervals to the reference, 0.05 to each side, overlap all but the last one's
    assert ranks(sweep) == {"key-a": "1-2", "key-b": "1-2", "key-c": "3", "key-d": "4"}


def test_a_copy_of_itself_ties(measured):
    found = ranks([measured("a", "gptq", 0.04, 1.0), measured("copy", "gptq", 0.04, 1.0)])
    assert found == {"key-a": "1-2", "key-copy": "1-2"}


def test_what_nobody_asked_for_and_what_has_no_windows_is_not_ranked(sweep):
    sweep[3]["implied"] = True
    sweep[4]["measurements"][0]["file"] = None
    assert ranks(sweep) == {"key-a": "1-2", "key-b": "1-2"}


def test_a_trial_of_two_sweeps_is_no_rival_of_itself(sweep):
    found = with_standings(rows(typed([*sweep, sweep[1] | {"sweep": "again"}])))
    own = [row.standing.text for row in found if row.key == "key-a"]
    assert own == ["1-2", "1-2"]
    assert {row.standing.of for row in found if row.standing} == {4}


def test_many_trials_make_no_worse_one_the_best(measured):
    """By all claims together hardly any pair is told apart; by itself this one is."""
    crowd = [measured(f"m{n}", "rtn", 0.05, 1.2, noise=0.004, seed=n) for n in range(30)]
    pair = [
        measured("better", "gptq", 0.0400, 1.0000, noise=0.004, seed=40),
        measured("worse", "awq", 0.0432, 0.9999, noise=0.004, seed=41),
    ]
    found = tell_of(typed([*pair, *crowd]))("key-better", "key-worse")
    assert found is tell_of(typed(pair))("key-better", "key-worse") is True


def test_in_the_silent_zone_nothing_is_ordered_but_by_size(measured):
    close = [
        measured("a", "gptq", 0.0010, 1.00, seed=1),
        measured("b", "awq", 0.0080, 0.90, seed=2),
        measured("c", "rtn", 0.0700, 0.89, seed=3),
    ]
    assert ranks(close) == {"key-a": "1-2=", "key-b": "1-2=", "key-c": "3"}
    assert [r.key for r in ranked(typed(close))][0] == "key-b"
    (answer,) = answers(typed(close))
    assert answer.record.key == "key-b" and answer.is_best and answer.decision.tied == ("key-a",)
    # who wants them ranked all the same says so
    for record in close:
        record["config"] = {"silent_kld": 0.0}
    assert ranks(close) == {"key-a": "1", "key-b": "2", "key-c": "3"}


def test_the_smallest_of_a_tie_is_the_best(measured):
    tie = [
        measured("large", "gptq", 0.0399, 1.0001),
        measured("small", "awq", 0.0401, 1.0000, seed=1),
        measured("worse", "rtn", 0.1500, 0.9990, seed=2),
    ]
    (answer,) = answers(typed(tie))
    assert answer.is_best and answer.record.key == "key-small"
    (line,) = best_lines(typed(tie))
    assert "pocket large cannot be told from it in quality, and none of them is smaller" in line


def test_all_that_is_shown_has_the_ranks(sweep):
    records = typed(sweep)
    table = shown(sweep, 160, terminal=False)
    for text in (table, results_markdown("s", records)):
        assert "rank" in text
        assert len(re.findall(r"\b1-2\b", text)) == 2
    assert len(re.findall(r">\s*1-2\s*<", render([SweepData("s", "c", records)]))) == 2
    lines = list(csv.DictReader(io.StringIO(to_csv(beside_others(rows(records))))))
    told = {line["key"]: (line["rank_first"], line["rank_last"], line["silent"]) for line in lines}
    assert told["key-b"] == ("1", "2", "false") and told["key-d"] == ("4", "4", "false")
    assert told["key-none"] == ("", "", "")


def test_one_trial_alone_has_no_rank(measured):
    assert ranks([reference(), measured("a", "gptq", 0.04, 1.0)]) == {}
    assert "rank" not in results_markdown("s", typed([reference()]))


def test_the_bound_of_the_silent_zone_is_an_option():
    launch = {"_target_": "qsweep.launch.local.LocalLauncher"}
    tracking = {"_target_": "qsweep.tracking.none.NoTracker"}
    config = {"launch": launch, "tracking": tracking}
    assert sweep_config(config).silent_kld == SILENT_KLD
    assert sweep_config(config | {"silent_kld": 0}).silent_kld == 0
    for wrong in (-1, "small", float("nan")):
        with pytest.raises(ConfigError, match="silent_kld"):
            sweep_config(config | {"silent_kld": wrong})
