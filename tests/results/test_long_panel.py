"""Long answers in the report, the tables and capabilities.md."""

from dataclasses import asdict

import pytest

from helpers.records import long_figures, reference, trial
from helpers.typed import typed
from qsweep.base.errors import ConfigError
from qsweep.results.capabilities import capabilities_markdown
from qsweep.results.columns.table import DIVERGENCE_TOKEN, LONG_LENGTH_RATIO
from qsweep.results.columns.views import searchable
from qsweep.results.html import long_answers
from qsweep.results.html.data import groups
from qsweep.results.html.vega import svg
from qsweep.results.record_file import NotARecord, content_of, record_of
from qsweep.results.rows import rows, to_csv
from qsweep.search.objectives import check_measured
from qsweep.sweep.config import EvalConfig


def figures(**more):
    return asdict(long_figures(**more))


ITSELF = figures(
    length=200.0, length_ratio=1.0, length_ratio_low=1.0, length_ratio_high=1.0, truncated=0.0, loops=0.0,
    departed=0.0, divergence_token=None, divergence_token_low=None, divergence_token_high=None,
    tokens=(), shares=(),
)  # fmt: skip
HELD = figures(
    divergence_token=None, divergence_token_low=90, divergence_token_high=None, departed=0.4,
    tokens=(10, 90), shares=(0.9, 0.6),
)  # fmt: skip


def with_long(record, long):
    task = {
        "name": "long_totals", "status": "finished", "capability": "long answers", "metric": "steps_right",
        "score": 0.5, "long": long, "facts": {"solved": 0.125},
    }  # fmt: skip
    return record | {"tasks": [task], "long": long}


RECORDS = [
    with_long(reference(), ITSELF),
    with_long(trial("rtn 2-bit", "rtn", 1.3, bits=2), figures()),
    with_long(trial("rtn 4-bit", "rtn", 1.05, bits=4), HELD),
    trial("awq 4-bit", "awq", 1.04, bits=4),
]


def test_a_record_keeps_them():
    for record in typed(RECORDS):
        assert record_of(content_of(record)) == record
    broken = with_long(reference(), ITSELF | {"shares": ["many"]})
    with pytest.raises(NotARecord, match="shares"):
        record_of(broken)


def test_cells_say_where_half_have_departed():
    found = {row.label: row for row in rows(typed(RECORDS))}
    cells = [DIVERGENCE_TOKEN.cell(row) for row in found.values()]
    assert sorted(cells) == ["", "", "37 (21-60)", "> 180 (90 to > 180)"]
    ratios = [LONG_LENGTH_RATIO.cell(row) for row in found.values()]
    assert sorted(ratios) == ["", "1.000", "1.200 (1.100-1.320)", "1.200 (1.100-1.320)"]


def test_the_csv_has_the_figures():
    lines = to_csv(rows(typed(RECORDS))).splitlines()
    header = lines[0].split(",")
    for name in ("long_length_ratio", "truncated", "loops", "divergence_token"):
        assert name in header and header.count(name) == 1
    two_bits = next(line for line in lines if "rtn 2-bit" in line).split(",")
    assert two_bits[header.index("divergence_token")] == "37"


def test_the_panel_draws_each_curve_from_the_whole_to_the_longest():
    (group,) = groups(typed(RECORDS))
    panel = long_answers.panel(group)
    values = panel.spec["data"]["values"]
    labels = {value["label"] for value in values}
    assert len(labels) == 2  # neither the reference nor the trial without such tasks
    for label in labels:
        curve = [(v["token"], v["share"]) for v in values if v["label"] == label]
        assert curve[0] == (0, 1.0) and curve == sorted(curve)
        assert [share for _, share in curve] == sorted((s for _, s in curve), reverse=True)
    assert {v["token"] for v in values} == {0, 10, 37, 90, 150, 180}
    assert len(panel.lines) == 3 and "37 (21-60)" in panel.alt
    assert "still the reference" in svg(panel.spec)


def test_without_long_answers_there_is_no_panel():
    (group,) = groups(typed([reference(), trial("awq 4-bit", "awq", 1.04, bits=4)]))
    assert long_answers.panel(group) is None


def test_capabilities_have_a_line_for_each_task_and_trial():
    page = capabilities_markdown("s", typed(RECORDS))
    section = page.partition("## Long answers")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if "long_totals" in line.replace("\\", "")]
    assert len(lines) == 3
    assert any("37 (21-60)" in line and "12.5%" in line and "25.0%" in line for line in lines)
    assert "## Long answers" not in capabilities_markdown("s", typed(RECORDS[3:]))


def test_a_search_may_aim_at_them_where_they_are_measured():
    assert searchable()["loops"].better == searchable()["truncated"].better == "down"
    # Where fewer than half depart there is no such token: the best trials have none.
    assert "divergence_token" not in searchable()
    aims = {"loops": "search.objective"}
    with pytest.raises(ConfigError, match="loops is not measured; add eval=long"):
        check_measured(aims, EvalConfig(tasks=("mmlu",)))
    aims |= {"long_length_ratio": "search.objective", "divergence_token": "search.objective"}
    for tasks in (("long",), ("mmlu", "long_gsm8k"), ("harness:long_gsm8k",), ("long_lists",)):
        check_measured(aims, EvalConfig(tasks=tasks))
    for metric in aims:
        for tasks in (("mmlu",), ("long_mine.yaml",), ("long_mine:make",)):
            with pytest.raises(ConfigError, match=f"{metric} is not measured; add eval=long"):
                check_measured({metric: "search.objective"}, EvalConfig(tasks=tasks))


def test_long_answers_are_not_right_or_wrong():
    aims = {"flips": "search.objective"}
    for tasks in ((), ("long",), ("harness:long_gsm8k", "long_lists")):
        with pytest.raises(
            ConfigError, match="flips is not measured; name tasks of right or wrong"
        ):
            check_measured(aims, EvalConfig(tasks=tasks))
    check_measured(aims, EvalConfig(tasks=("long", "mmlu")))
