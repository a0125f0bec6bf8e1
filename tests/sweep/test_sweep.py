"""Whole sweeps as subprocesses, on the embedded model with small budgets."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers.sweeps import ROOT, command, qsweep, rows

COLUMNS = (
    "status,model,method,backend,bits,group_size,desc_act,sym,type,calibration,corpus,preset,bpw,"
    "bpw_total,size_gb,ppl,ppl_stderr,ppl_ratio,ppl_ratio_low,ppl_ratio_high,kld,kld_stderr,kld_p99,"
    "top1_agreement,quality,quality_per_gb,verdict,quantize_s,evaluate_s,peak_memory_gb,reason,key,"
    "artifact"
).split(",")
GRID = ["-m", "quant=none,rtn", "bits=3,8", "corpus=[python_docs,python_code]"]


def records(outputs, sweep="t"):
    files = (outputs / "sweeps" / sweep / "trials").glob("*.json")
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    result = qsweep(outputs, *GRID)
    assert result.returncode == 0, result.stdout + result.stderr
    return outputs, result


def test_the_csv_has_the_promised_columns_and_one_row_per_trial_and_corpus(finished):
    outputs, _ = finished
    found = rows(outputs)
    assert list(found[0])[: len(COLUMNS)] == COLUMNS
    # none at 3 and at 8 bits is one trial: bits do not concern it
    trials = {(row["method"], row["bits"]) for row in found}
    assert trials == {("none", ""), ("rtn", "3"), ("rtn", "8")}
    assert len(found) == 3 * 2
    assert {row["corpus"] for row in found} == {"python_docs", "python_code"}


def test_figures_are_plausible_and_fewer_bits_cost_more(finished):
    outputs, _ = finished
    figures = {(r["method"], r["bits"]): r for r in rows(outputs) if r["corpus"] == "python_docs"}
    reference, rtn3, rtn8 = (figures[k] for k in (("none", ""), ("rtn", "3"), ("rtn", "8")))
    assert 1 < float(reference["ppl"]) < 4096
    assert float(rtn3["ppl_ratio"]) == pytest.approx(
        float(rtn3["ppl"]) / float(reference["ppl"]), rel=1e-4
    )
    assert float(rtn8["ppl_ratio"]) < 1.02 < float(rtn3["ppl_ratio"])
    assert float(rtn8["kld"]) < 0.01 < float(rtn3["kld"])
    assert float(rtn3["ppl_ratio_low"]) < float(rtn3["ppl_ratio"]) < float(rtn3["ppl_ratio_high"])
    assert rtn8["verdict"] == "yes"
    assert 3 < float(rtn3["bpw"]) < 4 and 8 < float(rtn8["bpw"]) < 9
    assert Path(rtn3["artifact"]).is_dir()


def test_what_the_person_sees(finished):
    outputs, result = finished
    assert "rtn" in result.stdout and "verdict" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    page = (outputs / "sweeps" / "t" / "results.md").read_text()
    assert "qsweep -m quant=none,rtn" in page


def snapshot(outputs):
    files = [
        p for p in outputs.rglob("*") if p.is_file() and not {"locks", ".hydra"} & set(p.parts)
    ]
    return {p: p.stat().st_mtime_ns for p in files if p.name != ".lock"}


def test_the_same_command_again_runs_nothing(finished):
    outputs, first = finished
    before = snapshot(outputs)
    result = qsweep(outputs, *GRID)
    assert result.returncode == 0
    assert "[1/" in first.stderr and "[1/" not in result.stderr
    changed = {p.name for p, time in snapshot(outputs).items() if before.get(p) != time}
    assert changed <= {"sweep.json", "results.csv", "results.md", "report.html", "report.svg"}
    assert result.stdout == first.stdout


def test_a_truncated_artifact_is_rebuilt(finished):
    outputs, _ = finished
    row = next(r for r in rows(outputs) if r["method"] == "rtn" and r["bits"] == "8")
    weights = next(Path(row["artifact"]).glob("*.safetensors"))
    size = weights.stat().st_size
    with weights.open("r+b") as file:
        file.truncate(size // 2)
    result = qsweep(outputs, *GRID)
    assert result.returncode == 0, result.stderr
    assert weights.stat().st_size == size
    again = next(
        r for r in rows(outputs) if r["key"] == row["key"] and r["corpus"] == row["corpus"]
    )
    assert float(again["ppl"]) == float(row["ppl"])


def test_what_cannot_exist_is_skipped_with_the_reason(tmp_path):
    result = qsweep(tmp_path, "-m", "quant=rtn", "group_size=100,128", "eval.divergence=false")
    assert result.returncode == 0, result.stdout + result.stderr
    skipped = [r for r in rows(tmp_path) if r["status"] == "skipped"]
    assert len(skipped) == 1
    assert "100" in skipped[0]["reason"]


def test_nothing_but_skipped_trials_is_exit_code_1(tmp_path):
    result = qsweep(tmp_path, "quant=gguf", "bits=7")
    assert result.returncode == 1
    assert [r["status"] for r in rows(tmp_path)] == ["skipped"]


def test_a_trial_that_hangs_is_ended_and_the_sweep_exits_1(tmp_path):
    result = qsweep(tmp_path, "quant=rtn", "timeout_s=0.2")
    assert result.returncode == 1
    failed = [r for r in rows(tmp_path) if r["status"] == "failed"]
    assert failed and "timed out after 0.2 s" in failed[0]["reason"]


def test_a_model_that_lacks_something_is_one_clear_line(tmp_path, pocket_dir):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((pocket_dir / "config.json").read_text())
    (broken / "pytorch_model.bin").write_bytes(b"pickle")
    result = qsweep(tmp_path / "out", "quant=rtn", f"model.path={broken}")
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr + result.stdout


@pytest.mark.slow
def test_after_kill_9_at_any_moment_the_next_run_completes(tmp_path):
    for delay in (3, 6, 9, 12, 15):
        process = subprocess.Popen(
            command(tmp_path, *GRID),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            start_new_session=True,
        )
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(2.5)  # the fork server notices and ends what it started
    result = qsweep(tmp_path, *GRID)
    assert result.returncode == 0, result.stderr
    assert len(rows(tmp_path)) == 6
    keys = [(r["key"], r["corpus"]) for r in rows(tmp_path)]
    assert len(set(keys)) == len(keys)
    leftovers = [p for p in (tmp_path / "store").rglob("*.tmp")]
    assert leftovers == []


@pytest.mark.slow
def test_two_sweeps_at_once_share_without_harm(tmp_path):
    first = subprocess.Popen(command(tmp_path, *GRID), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    second = subprocess.Popen(
        [*command(tmp_path, *GRID), "sweep=other"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    for process in (first, second):
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors
    figures = [
        {(r["key"], r["corpus"]): r["ppl"] for r in rows(tmp_path, sweep)}
        for sweep in ("t", "other")
    ]
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_gptq_and_awq_and_gguf_end_to_end(tmp_path):
    result = qsweep(tmp_path, "-m", "quant=gptq,awq,gguf", "bits=4")
    assert result.returncode == 0, result.stdout + result.stderr
    found = {r["method"]: r for r in rows(tmp_path) if r["corpus"] == "python_docs"}
    assert set(found) == {"none", "gptq", "awq", "gguf"}
    for method in ("gptq", "awq", "gguf"):
        assert found[method]["status"] == "finished"
        assert 0.95 < float(found[method]["ppl_ratio"]) < 1.5
