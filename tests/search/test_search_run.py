"""Real searches on the embedded model, as a user runs them."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from helpers.sweeps import run_here

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *(
        "--config-name=pareto",
        "sweep=t",
        "quant=rtn",
        "format=int",
        "bits=2,4,8",
        "group_size=128,100",
    ),
    *("corpus=[python_docs]", "eval.max_windows=4", "search.few_windows=2"),
]


def command(outputs, *arguments):
    return [sys.executable, "-m", "qsweep", *SMALL, f"outputs_dir={outputs}", *arguments]


def search(outputs, *arguments):
    return run_here([*SMALL, f"outputs_dir={outputs}", *arguments])


def table(outputs, name="results.csv"):
    with (outputs / "sweeps" / "t" / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def trials(outputs):
    url = f"sqlite:///{outputs / 'sweeps' / 't' / 'study.db'}"
    return optuna.load_study(study_name="t", storage=url).trials


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    result = search(outputs)
    assert result.returncode == 0, result.stdout + result.stderr
    return outputs, result


def test_the_answer_is_printed_and_written_with_commands(finished):
    outputs, result = finished
    assert "what to ship:" in result.stdout and "best quality per GB" in result.stdout
    page = (outputs / "sweeps" / "t" / "answer.md").read_text()
    assert "## Best quality per GB" in page and "## The smallest with verdict yes" in page
    # the file's own eval.max_windows=4 is on the command line, so the short form is the same trial
    assert "`qsweep quant=rtn" in page and "eval.max_windows=4" in page
    for plot in ("front.png", "history.png"):
        assert (outputs / "sweeps" / "t" / plot).stat().st_size > 10_000


def test_the_answer_is_the_best_of_what_was_measured(finished):
    outputs, result = finished
    rows = [r for r in table(outputs) if r["reference"] != "true"]
    best = max(rows, key=lambda r: float(r["quality_per_gb"]))
    line = next(line for line in result.stdout.splitlines() if "best quality per GB" in line)
    assert best["name"] in line
    assert Path(best["artifact"]).is_dir()


def test_lower_fidelity_is_marked_and_kept_apart(finished):
    outputs, _ = finished
    assert {row["fidelity"] for row in table(outputs)} == {"full"}
    assert {row["windows"] for row in table(outputs)} == {"4"}
    screened = table(outputs, "screening.csv")
    assert {row["fidelity"] for row in screened} == {"few"}
    assert {row["windows"] for row in screened} == {"2"}
    names = {f.stem for f in (outputs / "sweeps" / "t" / "screening").glob("*.json")}
    assert not names & {f.stem for f in (outputs / "sweeps" / "t" / "trials").glob("*.json")}


def test_the_impossible_is_not_proposed(finished):
    outputs, _ = finished
    assert {t.user_attrs["params"]["group_size"] for t in trials(outputs)} == {"128"}


def test_the_answer_is_logged_to_the_parent_run(finished):
    outputs, _ = finished
    logged = {path.name for path in (outputs / "mlruns").rglob("*") if path.is_file()}
    assert {"answer.md", "front.png", "history.png", "screening.csv"} <= logged


def test_the_same_search_again_runs_nothing(finished):
    outputs, first = finished
    before = len(trials(outputs))
    result = search(outputs, "tracking=none")
    assert result.returncode == 0, result.stderr
    assert "[1/" not in result.stderr
    assert len(trials(outputs)) == before
    assert "best quality per GB" in result.stdout
    assert len(table(outputs)) == len({row["key"] for row in table(outputs)}) >= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bits=2,3,4"], "study 't' is stored with space.bits"),
        (["search.objective=[size_gb,kld]"], "stored with objective"),
        (["eval.max_windows=5"], "overrides.max_windows = 4, now it is 5"),
        (["search.objective=qualty"], "did you mean 'quality'"),
        (["search.constraints=['ppl_ratoi <= 1']"], "did you mean 'ppl_ratio'"),
        (["search.objective=decode_tps"], "add eval=speed"),
        (["search.samplr=tpe"], "'search.samplr'"),
        (["search.storage=nowhere"], "search.storage=nowhere: sqlite, journal"),
        (["search.enqueue=['bits=5']"], "'bits=5' is no combination"),
        (["bitz=3"], "did you mean 'bits'"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_runs(finished, arguments, message):
    outputs, _ = finished
    result = search(outputs, "tracking=none", *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert message in result.stderr


def test_an_empty_feasible_set_says_which_constraint_and_keeps_the_trials(finished):
    outputs, _ = finished
    result = search(
        outputs, "tracking=none", "sweep=none", "search.constraints=['size_gb <= 0.001']"
    )
    assert result.returncode == 1
    assert "no trial satisfies size_gb <= 0.001" in result.stderr
    assert "Traceback" not in result.stderr
    assert (outputs / "sweeps" / "none" / "answer.md").is_file()


def test_all_trials_failing_is_one_line(tmp_path):
    result = search(tmp_path, "tracking=none", "timeout_s=0.2", "bits=4")
    assert result.returncode == 1
    assert "all trials failed; the first:" in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


@pytest.mark.slow
def test_a_search_killed_with_kill_9_goes_on(tmp_path):
    process = subprocess.Popen(
        command(tmp_path, "tracking=none"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    done = 0
    for line in process.stderr:
        done += "finished" in line
        if done >= 6:  # past the screening: something is claimed or soon will be
            break
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    result = search(tmp_path, "tracking=none")
    assert result.returncode == 0, result.stderr
    found = trials(tmp_path)
    assert not [t for t in found if t.state.name in ("RUNNING", "WAITING")]
    keys = [t.user_attrs["key"] for t in found if t.state.name in ("COMPLETE", "PRUNED")]
    assert len(keys) == len(set(keys)) == 3
    assert {row["status"] for row in table(tmp_path)} == {"finished"}


@pytest.mark.slow
def test_two_processes_search_one_study(tmp_path):
    processes = [
        subprocess.Popen(command(tmp_path, "tracking=none"), cwd=ROOT, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors
    found = [t for t in trials(tmp_path) if t.state.name != "FAIL"]
    keys = [t.user_attrs["key"] for t in found]
    assert len(keys) == len(set(keys)) == 3
    kept = {json.dumps(row) for row in table(tmp_path)}
    assert len(kept) == sum(t.state.name == "COMPLETE" for t in found) + 1
