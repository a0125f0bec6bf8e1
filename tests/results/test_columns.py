"""The table of columns: whatever is in it is everywhere, and nothing is shown that is not in it."""

import csv
import io
from pathlib import Path

import pytest

from helpers.records import reference, shown, trial
from helpers.typed import on_disk, typed
from qsweep.results.card import model_card
from qsweep.results.columns import column as columns
from qsweep.results.columns.page import metrics_markdown
from qsweep.results.columns.table import CSV_ORDER
from qsweep.results.columns.views import csv_columns, searchable
from qsweep.results.html.data import SweepData, groups
from qsweep.results.html.page import render
from qsweep.results.html.panel import point
from qsweep.results.markdown import results_markdown
from qsweep.results.record_file import NotARecord, content_of, record_of
from qsweep.results.rows import rows, to_csv
from qsweep.search.objectives import figure, parse_constraint, parse_objective
from qsweep.tracking.mlflow import views
from qsweep.tracking.mlflow.runs import sweep_run, trial_run

DOCS = Path(__file__).resolve().parents[2] / "docs"
render, results_markdown, trial_run = map(on_disk, (render, results_markdown, trial_run))


@pytest.fixture
def brier():
    """A metric that is added: the row is all that it takes, beside the function that measures it."""
    tables = dict.fromkeys(("terminal", "markdown", "html", "card"), "BRIER")
    added = columns.add(
        columns.of_measurement(
            "brier", "1 less the Brier score of the next token", unit="share", better="up",
            csv=True, text=lambda value: "" if value is None else f"{100 * value:.2f} %",
            tables=tables, hover=("Brier", 9), view=("metrics", 20), best=True, by_bits=True,
        )
    )  # fmt: skip
    yield added
    columns.TABLE.remove(added)


def measured():
    """A sweep in which it was measured."""
    records = [
        reference(),
        trial("gptq 4-bit", "gptq", 1.05, 0.001, bits=4, environment={"qsweep": "1"}),
        trial("awq 4-bit", "awq", 1.19, 0.001, bits=4),
    ]
    records[1]["measurements"][0]["metrics"]["brier"] = 0.87654
    return records


def test_a_metric_is_a_row_and_then_it_is_everywhere(brier, tmp_path):
    records = typed(measured())
    lines = list(csv.DictReader(io.StringIO(to_csv(rows(records)))))
    assert [line["brier"] for line in lines if line["method"] == "gptq"] == ["0.87654"]
    assert tuple(lines[0])[: len(CSV_ORDER)] == CSV_ORDER and "brier" in tuple(lines[0])
    for text in (shown(measured(), 160, terminal=False), results_markdown("s", records)):
        assert "BRIER" in text and "87.65 %" in text
    page = render([SweepData("s", "", records)])
    assert ">BRIER</button>" in page and "87.65 %" in page and "1 less the Brier score" in page
    assert [point(row)["h_brier"] for row in groups(records)[0].quantized] == ["87.65 %", ""]
    metrics = {p.name: p.value for p in trial_run(records[1]).metrics}
    assert metrics["brier"] == metrics["python_docs/brier"] == 0.87654
    run = sweep_run("s", "c", records, tmp_path, complete=True)
    assert {"best_brier", "by_bits/pocket gptq/brier"} <= {p.name for p in run.metrics}
    assert "metrics.`brier`" in views.view()
    assert str(parse_objective("brier")) == "brier up"
    assert parse_constraint("brier >= 0.9").excess(figure(records[1], "brier")) > 0
    assert "87.65 %" in model_card(records[1], {}, [], "name")
    assert "1 less the Brier score" in metrics_markdown()
    assert (
        content_of(record_of(content_of(records[1])))["measurements"][0]["metrics"]["brier"]
        == 0.87654
    )


def test_without_its_row_a_figure_is_an_error_that_names_it():
    line = r"measurements\.0: no column of results/columns/table\.py is called 'brier'"
    with pytest.raises(NotARecord, match=line):
        record_of(measured()[1])
    timed = trial("gptq 4-bit", "gptq", 1.05, bits=4, speed={"warp_tps": 9.0})
    with pytest.raises(NotARecord, match=r"speed: no column .* 'warp_tps': a figure of a speed"):
        record_of(timed)
    with pytest.raises(NotARecord, match="kld: a number is wanted, not 'small'"):
        record_of(trial("x", "gptq", 1.05, speed={}) | {"measurements": [
            {"corpus": "c", "preset": "p", "metrics": {"kld": "small"}}]})  # fmt: skip


def test_a_name_is_taken_once(brier):
    with pytest.raises(ValueError, match="brier already"):
        columns.add(columns.of_measurement("brier", "again"))


def test_the_columns_of_results_csv_keep_their_names_and_order():
    assert tuple(column.name for column in csv_columns()) == CSV_ORDER
    assert {column.better for column in searchable().values()} == {"up", "down"}
    assert all(column.meaning and not column.meaning.endswith(".") for column in columns.TABLE)


def test_the_page_of_metrics_is_what_the_table_says():
    assert (DOCS / "metrics.md").read_text(encoding="utf-8") == metrics_markdown(), (
        "python tools/metrics_page.py"
    )
