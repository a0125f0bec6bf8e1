"""What a sweep costs beyond the work itself: per trial, at a resume, in the launching process."""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.configs import composed
from helpers.sweeps import ROOT, command, qsweep
from qsweep.base.progress import silent
from qsweep.base.store import Store, seal
from qsweep.sweep.config import trial_config
from qsweep.sweep.plan import make_plan
from qsweep.sweep.setting import find_setting
from qsweep.sweep.trial import run_trial

# One window of a few tokens on the embedded model: next to no work, so what is left is overhead.
TINY = [
    "quant=none",
    "corpus=file",
    "eval.context=32",
    "eval.noise_floor=false",
    "eval.max_windows=1",
]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Words that are measured. " * 200)
    return f"corpus.path={path}"


def forget(outputs, *kinds):
    """Remove what trials made, so that they run again, but not the reference's cache."""
    import shutil

    for kind in kinds:
        shutil.rmtree(outputs / "store" / kind)


def alone(outputs):
    """Seconds that the work itself takes in a warm process, at the median: load, tokenize, measure."""
    script = """
import sys, time
from pathlib import Path
import torch
from qsweep.sweep import trial as t
from qsweep.base.store import Store
from qsweep.base.progress import silent
import json
torch.set_num_threads(1)
store, records = Store(Path(sys.argv[1])), json.loads(sys.argv[2])
from qsweep.sweep.config import trial_config
from qsweep.sweep.plan import make_plan
from qsweep.sweep.setting import find_setting
spent = []
for config in [records[0], *records]:  # the first warms up
    trial = trial_config(config)
    started = time.perf_counter()
    plan = make_plan(trial, find_setting(trial, Path(trial.model.path), store, "cpu"))
    model = t.load(plan, plan.setting.reference_artifact())
    windows = t.windows_of(plan, plan.measurements[0], store)
    from qsweep.evaluate import measure
    measure(model, windows)
    spent.append(time.perf_counter() - started)
import statistics
print(statistics.median(spent[1:]))
"""
    files = sorted((outputs / "sweeps" / "t" / "trials").glob("*.json"))
    configs = [json.loads(file.read_text())["config"] for file in files]
    result = subprocess.run(
        [sys.executable, "-c", script, str(outputs / "store"), json.dumps(configs)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    return float(result.stdout)


@pytest.mark.slow
def test_a_trial_costs_at_most_half_a_second_beyond_its_work(tmp_path, text):
    # Contexts tell the trials apart; each loads the model, and measures one window.
    outputs = tmp_path / "out"
    contexts = "eval.context=" + ",".join(str(n) for n in range(20, 32))
    arguments = ["-m", *(o for o in TINY if "context" not in o), text, contexts]
    assert qsweep(outputs, *arguments).returncode == 0
    forget(outputs, "measurements")
    process = subprocess.Popen(
        command(outputs, *arguments), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    ends = [time.monotonic() for line in process.stderr if "finished" in line]
    assert process.wait() == 0 and len(ends) == 12
    each = statistics.median(b - a for a, b in itertools.pairwise(ends))
    work = alone(outputs)
    print(json.dumps({"per_trial_s": each, "work_s": work, "overhead_s": each - work}))
    assert each - work < 0.5


def finish(outputs, text, contexts):
    """Finished trials under these contexts: one that is run, and copies of what it measured."""
    store = Store(outputs / "store")
    made = None
    config = composed(*(o for o in TINY if "context" not in o), text)
    for context in contexts:
        trial = trial_config(config | {"eval": config["eval"] | {"context": context}})
        plan = make_plan(trial, find_setting(trial, Path(trial.model.path), store))
        (step,) = plan.measurements
        if made is None:
            run_trial(plan, store, silent)
            made = store.find("measurements", step.key)
            continue
        folder = store.path("measurements", step.key)
        folder.mkdir(parents=True)
        for file in made.path.iterdir():
            if file.name != "manifest.json":
                (folder / file.name).write_bytes(file.read_bytes())
        seal(folder, step.identity, made.content)


def processor_seconds(*arguments):
    """User and system seconds of a command, whatever else the machine does meanwhile."""
    before = os.times()
    result = subprocess.run(
        [sys.executable, "-m", "qsweep", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
    )
    after = os.times()
    assert result.returncode == 0, result.stdout + result.stderr
    spent = (
        after.children_user - before.children_user + after.children_system - before.children_system
    )
    return spent, result


def test_a_hundred_finished_trials_are_skipped_in_two_seconds(tmp_path, text):
    outputs = tmp_path / "out"
    base = ["-m", *(o for o in TINY if "context" not in o), text, "tracking=none", "sweep=t"]
    where = f"outputs_dir={outputs}"
    finish(outputs, text, range(39, 140))
    contexts = "eval.context=" + ",".join(str(n) for n in range(40, 140))
    processor_seconds(*base, contexts, where)  # writes the records
    spent, result = processor_seconds(*base, contexts, where)
    assert "[1/" not in result.stderr  # nothing ran
    start_up, _ = processor_seconds(*base, "eval.context=39", where)
    print(json.dumps({"resume_s": spent, "start_up_s": start_up}))
    # Hydra's own composing included; a machine that is slow to start is slow at that, too.
    assert spent - start_up < max(2.0, 2 * start_up)


def test_the_launching_process_does_not_grow_from_trial_to_trial(tmp_path):
    # the launcher's and the sweep's side of a trial, without torch: thousands in a few seconds
    script = """
import gc, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from qsweep.launch import Job
from qsweep.launch.local import ForkServer, run_jobs
from qsweep.launch.local.slots import Slots
def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
with ForkServer(preload=()) as server:
    seen = []
    for turn in range(5):
        jobs = [Job(id=str(n), name="n", target="launch_targets:echo", payload={"x": "y" * 1000},
                    log=Path(sys.argv[1]) / f"{n}.log") for n in range(40)]
        run_jobs(jobs, slots=Slots(count=2), server=server)
        seen.append(resident())
print(*seen)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(ROOT / "tests")],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    seen = [int(value) for value in result.stdout.split()]
    # after the first forty, less than 10 KB for each of the next hundred and sixty
    assert seen[-1] - seen[1] < 120 * 10_000, seen
