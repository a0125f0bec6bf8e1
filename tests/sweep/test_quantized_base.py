"""A sweep on a model that is released quantized alone, and all the places that say so."""

import csv
import io

import pytest
from rich.console import Console

from helpers.quantized import fp8
from qsweep.base.progress import silent
from qsweep.results.html.data import SweepData
from qsweep.results.html.page import render
from qsweep.results.markdown import results_markdown
from qsweep.results.record_file import content_of, record_of
from qsweep.results.terminal import print_results
from qsweep.results.write import write_results
from qsweep.sweep.plan import make_plan
from qsweep.sweep.recording import finished_record
from qsweep.sweep.setting import find_setting
from qsweep.sweep.trial import run_trial

CALLED = "fp8 block 32x32"


@pytest.fixture
def released(pocket_dir, tmp_path):
    return fp8(pocket_dir, tmp_path / "released", weight_block_size=[32, 32])


def test_the_reference_is_what_dequantizing_gives(planned, released, tmp_path):
    store, plan = planned("quant=rtn", model=released)
    facts = plan.setting.facts
    assert facts.path.parent == store.root / "models"
    assert facts.dequantized_from == CALLED
    # A job's process is told of the directory that was made: it comes to the same plan.
    there = make_plan(plan.trial, find_setting(plan.trial, facts.path, store))
    assert (there.key, there.setting.facts) == (plan.key, facts)
    run_trial(plan, store, silent)
    records = [finished_record(p, store) for p in (plan.reference(), plan)]
    assert [record.dequantized_from for record in records] == [CALLED, CALLED]
    assert [record_of(content_of(record)) for record in records] == records
    divergence = [record.primary.metrics["kld"] for record in records]
    assert divergence[0] == 0 < divergence[1]

    page = render([SweepData("demo", "qsweep", records)])
    assert f"none (dequantized from {CALLED})</th>" in page
    assert f"<dt>Reference</dt><dd>dequantized from {CALLED}: " in page
    assert "reference dequantized from" in page  # the column's heading
    assert f"- reference: dequantized from {CALLED}\n" in results_markdown("demo", records)
    table, _ = write_results(tmp_path, records)
    with table.open(encoding="utf-8") as file:
        assert {row["dequantized_from"] for row in csv.DictReader(file)} == {CALLED}
    out = io.StringIO()
    print_results(records, tmp_path, Console(file=out, width=200))
    assert f"reference: dequantized from {CALLED}" in out.getvalue()


def test_an_ordinary_model_says_nothing_of_it(planned, tmp_path):
    store, plan = planned("quant=none")
    assert plan.setting.facts.dequantized_from is None
    run_trial(plan, store, silent)
    record = finished_record(plan, store)
    assert "dequantized_from" not in content_of(record)
    assert "dequantized" not in results_markdown("demo", [record])
    page = render([SweepData("demo", "qsweep", [record])])
    assert "reference dequantized from" not in page
