"""Draws of one setting as one row: its figures, what it covers, and where its draws are still told."""

import csv
import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers.measured import TOKENS, WINDOWS, measured_trial
from helpers.records import reference, shown, trial
from helpers.typed import typed
from qsweep.base.errors import QsweepError
from qsweep.commands.trials import one_of
from qsweep.evaluate.draws import estimate, from_figures
from qsweep.evaluate.intervals import student_t
from qsweep.results.answers import answers
from qsweep.results.beside import beside_others
from qsweep.results.checks import check
from qsweep.results.draws import one_for_each, pooled, singles
from qsweep.results.frame import frame
from qsweep.results.html.data import SweepData, groups, merge
from qsweep.results.html.draws import spread
from qsweep.results.html.page import render
from qsweep.results.markdown import results_markdown
from qsweep.results.record_file import content_of, record_of
from qsweep.results.rows import rows
from qsweep.results.ties import with_standings
from qsweep.results.write import draws_csv, write_results
from qsweep.tracking.mlflow.runs import sweep_run, trial_run

SEEDS = [0, 1, 2, 3]


def draw(make, name, method, loss, seed, **more):
    """One draw of a setting, whose config says so."""
    config = {"calibration": {"seed": seed, "num_samples": 4}, "seed": seed, "seeds": SEEDS}
    record = make(f"{name} {seed}", method, loss, 1.0, seed=100 + seed, calibration="python",
                  called=f"pocket {name}", config=config, **more)  # fmt: skip
    return record


@pytest.fixture
def make(tmp_path):
    def made(name, method, loss, size_gb, *, called=None, **more):
        record = measured_trial(tmp_path, name, method, loss, size_gb, noise=0.002, **more)
        return record | ({} if called is None else {"name": called})

    return made


@pytest.fixture
def base(tmp_path, make):
    """The reference, with windows."""
    record = reference(config={"seeds": SEEDS})
    folder = tmp_path / "reference"
    folder.mkdir()
    text = np.random.default_rng(99).uniform(2.0, 4.0, WINDOWS)
    arrays = {"window_nll": text * TOKENS, "window_tokens": np.full(WINDOWS, TOKENS)}
    save_file(arrays, folder / "arrays.safetensors")
    record["measurements"][0]["file"] = str(folder)
    return record


@pytest.fixture
def sweep(make, base):
    """A setting whose draws lie far apart, one that draws nothing between them."""
    losses = [0.05, 0.15, 0.10, 0.06]
    drawn = [draw(make, "gptq 3-bit", "gptq", loss, s) for s, loss in enumerate(losses)]
    return [base, *drawn, make("rtn 3-bit", "rtn", 0.11, 1.0, seed=7, config={"seeds": SEEDS})]


def the(records, method):
    (found,) = [record for record in records if record.method == method]
    return found


def nll(record):
    return load_file(f"{record.measurements[0].file}/arrays.safetensors")["window_nll"]


def test_one_record_is_in_the_place_of_its_draws(sweep):
    records = typed(sweep)
    found = pooled(records)
    assert [r.method for r in found] == ["none", "gptq", "rtn"]
    one = the(found, "gptq")
    assert [d.key for d in one.draws] == [r.key for r in records[1:5]]
    assert singles(found) == records and pooled(found) == found
    assert one.key not in {r.key for r in records}


def test_its_figures_are_means_with_an_interval_over_windows_and_draws(sweep):
    records = typed(sweep)
    metrics = the(pooled(records), "gptq").primary.metrics
    each = [r.primary.metrics for r in records[1:5]]
    assert metrics["kld"] == pytest.approx(np.mean([m["kld"] for m in each]))
    assert math.log(metrics["ppl_ratio"]) == pytest.approx(0.09)
    differences = np.stack([nll(r) for r in records[1:5]]) - nll(records[0])
    half = estimate(differences, np.full(WINDOWS, float(TOKENS))).half()
    assert metrics["ppl_ratio_high"] == pytest.approx(metrics["ppl_ratio"] * math.exp(half))
    assert metrics["ppl_ratio_low"] == pytest.approx(metrics["ppl_ratio"] * math.exp(-half))
    # four draws from .05 to .15: t of three degrees of freedom, by their standard deviation
    assert half == pytest.approx(
        student_t(3) * np.std([0.05, 0.15, 0.10, 0.06], ddof=1) / 2, rel=0.05
    )
    assert metrics["quality"] == pytest.approx(1 - 0.09 / math.log(1.2))
    assert the(pooled(records), "gptq").primary.verdict == "usually"


def test_its_standard_error_makes_half_of_its_interval(sweep):
    """So that who knows nothing of draws, as a search's bounds, is no surer than it."""
    records = typed(sweep)
    metrics = the(pooled(records), "gptq").primary.metrics
    klds = np.stack([np.add.reduceat(load_file(f"{r.measurements[0].file}/arrays.safetensors")
                     ["token_kld"].astype(float), np.arange(0, WINDOWS * TOKENS, TOKENS))
                     for r in records[1:5]])  # fmt: skip
    half = estimate(klds, np.full(WINDOWS, float(TOKENS))).half()
    assert metrics["kld_stderr"] * student_t(WINDOWS - 1) == pytest.approx(half, rel=1e-5)


def test_where_windows_are_gone_the_draws_own_intervals_count(sweep):
    for record in sweep:
        for measurement in record["measurements"]:
            measurement["file"] = None
    records = typed(sweep)
    metrics = the(pooled(records), "gptq").primary.metrics
    t = student_t(41 - 1)
    each = [r.primary.metrics for r in records[1:5]]
    logs = [math.log(m["ppl_ratio"]) for m in each]
    errors = [math.log(m["ppl_ratio_high"] / m["ppl_ratio_low"]) / 2 / t for m in each]
    half = from_figures(logs, errors, 41).half()
    assert metrics["ppl_ratio_high"] == pytest.approx(metrics["ppl_ratio"] * math.exp(half))


def test_what_tables_call_a_setting_and_its_draws_means_them(sweep, tmp_path, capsys):
    records = typed(sweep)
    setting, drawn = the(pooled(records), "gptq"), records[1:5]
    # a setting's own key means what its name means: its first draw
    for word in (setting.key, setting.key[:12], "pocket gptq 3-bit", "gptq 3-bit"):
        assert one_of(records, word, tmp_path) == drawn[0]
    for n, record in enumerate(drawn):
        assert one_of(records, f"gptq 3-bit seed={n}", tmp_path) == record
        assert one_of(records, record.key, tmp_path) == record
    table = csv.DictReader(io.StringIO(draws_csv(pooled(records))))
    for line in list(table):
        assert one_of(records, line["label"], tmp_path).key == line["key"]
    with pytest.raises(QsweepError, match="no trial 'gptq 3-bit seed=9'"):
        one_of(records, "gptq 3-bit seed=9", tmp_path)


def test_a_draw_is_called_as_the_table_calls_its_setting(sweep, tmp_path):
    """Which names the grid where settings of both kinds are there; draws by themselves have one."""
    records = [
        r if r.reference else replace(r, options={**r.options, "sym": r.method == "gptq"})
        for r in typed(sweep)
    ]
    labels = {row.label for row in rows(pooled(records))}
    called = next(label for label in labels if label.endswith("gptq 3-bit sym"))
    for n, record in enumerate(records[1:5]):
        assert one_of(records, f"{called} seed={n}", tmp_path).key == record.key


def test_draws_that_nobody_asked_to_be_pooled_stay_rows(sweep):
    for record in sweep:
        record["config"].pop("seeds")
    assert pooled(typed(sweep)) == typed(sweep)
    text = shown(sweep, 200, terminal=False)
    assert "cover the text's windows alone: 4 rows are of one draw of the calibration text" in text
    assert "seeds=4" not in text  # beside a seed that is varied it is refused
    alone = shown(sweep[:2], 200, terminal=False)
    assert "1 row is of one draw of the calibration text; seeds=4 measures 4 draws" in alone
    # nor is it taken beside a calibration.seed of its own
    sweep[1]["config"] |= {"seed": 0, "calibration": {"seed": 3}}
    assert "seeds=4" not in shown(sweep[:2], 200, terminal=False)


def test_a_record_of_a_run_before_is_a_draw_of_this_one(sweep):
    """Found again in the store, it says nothing of seeds."""
    sweep[1]["config"].pop("seeds")
    assert len(the(pooled(typed(sweep)), "gptq").draws) == 4


def test_the_order_of_options_in_a_file_tells_no_settings_apart(sweep):
    sweep[1]["config"] = dict(reversed(sweep[1]["config"].items()))
    sweep[1]["options"] = dict(reversed(sweep[1]["options"].items()))
    assert len(the(pooled(typed(sweep)), "gptq").draws) == 4


def test_other_settings_and_other_measurements_are_others(make, sweep):
    sweep[1]["config"]["calibration"]["num_samples"] = 8
    sweep[2]["measurements"][0]["facts"]["windows"] = 20
    found = [len(r.draws) for r in pooled(typed(sweep)) if r.draws]
    assert sorted(found) == [1, 1, 2]


def test_a_draw_that_failed_is_told_and_the_row_counts_the_others(sweep, tmp_path):
    failed = trial("gptq 3-bit", "gptq", bits=4, reason="ended by a signal", calibration="python")
    failed["config"] = sweep[3]["config"]
    failed["options"] = sweep[3]["options"]
    sweep[3] = failed | {"key": "key-failed"}
    text = shown(sweep, 200, terminal=False)
    assert re.search(r"gptq 3-bit +\|.*\|3 of 4\|", text)
    assert "ended by a signal" in text and "5 finished, 1 failed" in text
    write_results(tmp_path / "t", typed(sweep))
    found = list(csv.DictReader(io.StringIO((tmp_path / "t/results.csv").read_text())))
    row = next(r for r in found if r["method"] == "gptq" and r["status"] == "finished")
    assert (row["draws"], row["draws_asked"], row["covers"]) == ("3", "4", "windows, draws")
    assert [r["reason"] for r in found if r["status"] == "failed"] == ["ended by a signal"]


def test_the_csv_says_what_is_covered_and_draws_csv_has_each(sweep, tmp_path):
    write_results(tmp_path / "t", typed(sweep))
    found = {r["method"]: r for r in csv.DictReader((tmp_path / "t/results.csv").open())}
    told = {m: (r["draws"], r["covers"], r["seed"]) for m, r in found.items()}
    assert told == {
        "none": ("", "", ""), "gptq": ("4", "windows, draws", ""), "rtn": ("", "windows", ""),
    }  # fmt: skip
    each = list(csv.DictReader((tmp_path / "t/draws.csv").open()))
    assert sorted(r["seed"] for r in each) == ["0", "1", "2", "3"]
    assert {r["covers"] for r in each} == {"windows"} and {r["draws"] for r in each} == {"1"}
    assert list(frame(typed(sweep))["draws"].dropna()) == [4]


def test_tables_and_answer_are_of_settings(sweep):
    text = shown(sweep, 200, terminal=False)
    assert len(re.findall(r"^gptq 3-bit", text, re.MULTILINE)) == 1 and "6 finished" in text
    assert "intervals and ranks cover windows and draws of the calibration text" in text
    page = results_markdown("t", typed(sweep))
    assert page.count("| pocket gptq 3-bit") == 1 and "| draws |" in page.replace("  ", "")
    (best,) = answers(pooled(typed(sweep)))
    assert "luckiest" not in best.decision.note and len(best.record.draws or ()) in (0, 4)


def test_no_draw_alone_makes_a_rank(sweep):
    """Rounding lies between the draws: to two of them it is better, to two worse."""
    apart = with_standings(rows(typed(sweep[:2] + sweep[5:])))
    assert {r.standing.text for r in apart if r.standing} == {"1", "2"}
    together = with_standings(rows(pooled(typed(sweep))))
    assert {r.standing.text for r in together if r.standing} == {"1-2"}


def test_a_setting_of_one_draw_is_not_taken_for_all_its_draws(make, sweep):
    """It lies a little above the mean of four that lie far apart: as rounding would be worse, as a draw it may be luck."""
    losses = [0.05, 0.08, 0.065, 0.055]
    several = [draw(make, "hqq 3-bit", "hqq", loss, s) for s, loss in enumerate(losses)]
    once = draw(make, "awq 3-bit", "awq", 0.12, 0)
    rounded = make("rtn 3-bit g64", "rtn", 0.12, 1.0, seed=7, config={"seeds": SEEDS})
    records = [sweep[0], *several, once, rounded]
    found = with_standings(rows(pooled(typed(records))))
    assert {r.record.method: r.standing.text for r in found if r.standing} == {
        "hqq": "1-2",
        "awq": "1-3",
        "rtn": "2-3",
    }
    text = shown(records, 200, terminal=False)
    assert "but 1 row is of one draw, with an interval over windows alone" in text


def test_settings_are_compared_draw_by_draw(make, sweep):
    """Another setting that is a little worse with each text, though texts differ far more."""
    losses = [0.055, 0.155, 0.105, 0.065]
    for seed, loss in enumerate(losses):
        sweep.append(draw(make, "awq 3-bit", "awq", loss, seed))
    found = {r.record.method: r for r in beside_others(rows(pooled(typed(sweep))))}
    assert found["awq"].peer.label.endswith("gptq 3-bit")
    assert found["awq"].peer.tie is False and found["awq"].peer.ppl_ratio_low > 1
    assert found["gptq"].standing.first < found["awq"].standing.first or (
        found["gptq"].standing.last < found["awq"].standing.last
    )


def test_the_page_has_a_strip_of_draws(sweep):
    data = SweepData("t", "", typed(sweep))
    (group,) = groups(merge([data]))
    panel = spread(group)
    values = panel.spec["data"]["values"]
    assert [p["mean"] for p in values] == [True, False, False, False, False]
    assert panel.lines == [["gptq 3-bit", "4", panel.lines[0][2], "1.051", "1.162"]]
    assert "cover windows and draws" in render([data])
    assert spread(groups(merge([SweepData("t", "", typed([sweep[0], sweep[5]]))]))[0]) is None


def test_a_tracker_gets_the_setting_beside_its_draws(sweep, tmp_path):
    records = typed(sweep)
    run = trial_run(the(pooled(records), "gptq"))
    assert run.name == "pocket gptq 3-bit (mean of 4 draws)" and run.files == {}
    assert run.tags["covers"] == "windows, draws" and run.tags["draws"] == "4"
    assert run.tags["pools"] == " ".join(r.key for r in records[1:5])
    assert "seed" not in run.params or run.params["seed"] == "None"
    alone = trial_run(records[1])
    assert alone.tags["covers"] == "windows" and alone.tags["draws"] == "1"
    parent = sweep_run("t", "", records, tmp_path, complete=True)
    assert {p.name: p.value for p in parent.metrics}["trials_finished"] == 6
    ratios = [p.value for p in parent.metrics if p.name == "by_bits/pocket gptq/ppl_ratio"]
    assert ratios == [pytest.approx(math.exp(0.09))]


def test_it_is_written_and_read_as_any_record(sweep):
    one = the(pooled(typed(sweep)), "gptq")
    assert record_of(content_of(one)) == one
    assert "draws" not in content_of(one.draws[0])


def test_a_search_gets_one_record_for_each_configuration(sweep):
    records = typed(sweep)
    base, *drawn, fixed = records
    found = one_for_each([4, 4, 1], [*drawn, *[fixed] * 4, fixed], records)
    assert [len(r.draws or ()) for r in found] == [4, 0, 0] and found[1] == found[2] == fixed
    failed = typed(trial("x", "gptq"))
    assert one_for_each([2], [failed, failed], [base]) == [failed]
    (rest,) = one_for_each([4], [failed, *drawn[1:]], [base])
    assert len(rest.draws) == 3


def test_tasks_are_means_with_intervals_that_hold_the_draws(sweep):
    for number, score in enumerate((0.5, 0.6, 0.4, 0.5), 1):
        answer = {
            "retention": score, "retention_low": score - 0.05, "retention_high": score + 0.05,
            "difference": score - 1, "difference_low": score - 1.05,
            "difference_high": score - 0.95, "p": 0.001, "test": "mcnemar", "samples": 200,
        }  # fmt: skip
        sweep[number]["tasks"] = [
            {"name": "t", "status": "finished", "capability": "math", "metric": "acc", "score": score,
             "score_low": score - 0.05, "score_high": score + 0.05, **answer}
        ]  # fmt: skip
        sweep[number]["capabilities"] = {"math": answer | {"measurable": True}}
        sweep[number]["suffers_most"] = {"capability": "math", "retention": score}
    one = the(pooled(typed(sweep)), "gptq")
    (task,) = one.tasks
    assert task.score == one.suffers_most.retention == pytest.approx(0.5)
    # draws from .4 to .6: half an interval of their spread alone is .13
    assert one.capabilities["math"].retention_high > 0.62 and task.score_low < 0.38
    assert one.capabilities["math"].p < 0.01 and "draws" in one.capabilities["math"].test


def test_what_is_wrong_with_an_artifact_is_said_of_its_draw(sweep):
    for record in sweep[1:5]:
        record["calibration_tokens"] = {"asked": 100, "distinct": 90}
    sweep[3]["calibration_tokens"] = {"asked": 100, "distinct": 10}
    lines = check(pooled(typed(sweep)))
    assert [line for line in lines if "10 different tokens" in line and "seed=2" in line]
