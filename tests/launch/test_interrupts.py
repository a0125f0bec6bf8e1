"""Signals at whatever moment, and processes that were stopped: everything ends within seconds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers.machine import alive, wait_until
from qsweep.launch import Job
from qsweep.launch.local import ForkServer, run_jobs
from qsweep.launch.local.slots import Slots

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SMALL = ["eval.max_windows=4", "calibration.num_samples=4", "eval.noise_floor=false", "sweep=t"]


def start(code, *arguments, cwd=None):
    path = os.pathsep.join([str(ROOT / "src"), str(HERE)])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        start_new_session=True,
    )


def says(process, word, seconds=60):
    line = process.stdout.readline().strip()
    assert line == word, (line, process.poll() is not None and process.stderr.read())


COMMAND = """
import os, subprocess, sys, time
from qsweep.commands.entry import command
from qsweep.launch.interrupts import finishing
child = ["sleep", "300"]

def wait_in_python():
    subprocess.Popen(child, start_new_session=True)
    print("ready", flush=True)
    time.sleep(300)

def deaf():  # a call that comes back neither by itself nor by a signal
    import ctypes, signal
    subprocess.Popen(child, start_new_session=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    print("ready", flush=True)
    ctypes.CDLL(None).pause()

def swallow():
    subprocess.Popen(child, start_new_session=True)
    print("ready", flush=True)
    try:
        time.sleep(300)
    except:
        pass
    time.sleep(300)

def finish():
    with finishing():
        print("ready", flush=True)
        time.sleep(1.0)
        print("finished", flush=True)
    print("never", flush=True)

def finish_for_ever():
    with finishing():
        subprocess.Popen(child, start_new_session=True)
        print("ready", flush=True)
        time.sleep(300)

@command
def main(arguments=None):
    globals()[sys.argv[1]]()
    return 0

if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGXCPU, 152)],
)
def test_a_signal_ends_a_command_and_its_children(number, code):
    process = start(COMMAND, "wait_in_python")
    says(process, "ready")
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert children
    time.sleep(0.2)  # or it is struck in the middle of saying so, and says it again
    process.send_signal(number)
    out, err = process.communicate(timeout=6)
    assert (process.returncode, out, err) == (code, "", "")


@pytest.mark.parametrize("how", ["swallow", "deaf"])
def test_an_interrupt_that_is_not_heard_comes_again_and_ends_it_all(how):
    process = start(COMMAND, how)
    says(process, "ready")
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(7) == 130
    assert time.monotonic() - started < 6
    assert wait_until(lambda: not any(map(alive, children)))


def test_what_is_being_written_is_finished_first():
    process = start(COMMAND, "finish")
    says(process, "ready")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=6)
    assert (process.returncode, out, err) == (143, "finished\n", "")


def test_a_second_interrupt_ends_it_at_once():
    process = start(COMMAND, "finish_for_ever")
    says(process, "ready")
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # the same one, from a wrapper: it does not count
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(2) == 130
    assert wait_until(lambda: not any(map(alive, children)))


def test_what_nohup_ignores_stays_ignored():
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + COMMAND
    process = start(code, "finish")
    says(process, "ready")
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "finished\nnever\n")


# the fork server and its jobs


@pytest.fixture
def job(tmp_path):
    sys.path.insert(0, str(HERE))

    def make(function, payload, **options):
        log = tmp_path / f"{function}.log"
        return Job(function, function, f"launch_targets:{function}", payload, log, **options)

    yield make
    sys.path.remove(str(HERE))


def stop_server(own, pids, tmp_path):
    def strike(event):
        if event.kind == "started" and not pids:
            assert wait_until(lambda: (tmp_path / "pids").exists())
            pids.extend(int(pid) for pid in (tmp_path / "pids").read_text().split())
            os.kill(own.pid, signal.SIGSTOP)

    return strike


def test_a_stopped_server_does_not_defeat_the_time_limit(job, tmp_path):
    made = job("have_children", {"folder": str(tmp_path), "seconds": 100}, timeout_s=1.0)
    started, pids = time.monotonic(), []
    with ForkServer(preload=()) as own:
        strike = stop_server(own, pids, tmp_path)
        results = run_jobs([made], slots=Slots(1), on_event=strike, server=own)
    assert results[made.id].reason == "timed out after 1 s"
    assert time.monotonic() - started < 25
    assert pids and wait_until(lambda: not any(map(alive, pids)))


def test_a_server_stopped_while_it_imports_is_started_again(job, tmp_path):
    (tmp_path / "slow_import.py").write_text("import time\ntime.sleep(1.5)\n")
    sys.path.insert(0, str(tmp_path))
    try:
        with ForkServer(preload=("slow_import",)) as own:
            own.start()
            os.kill(own.pid, signal.SIGSTOP)
            results = run_jobs([job("echo", {"x": 1})], slots=Slots(1), server=own)
    finally:
        sys.path.remove(str(tmp_path))
    assert results["echo"].result == {"x": 1}


def test_a_stopped_job_ends_at_its_time_limit(job, tmp_path):
    made = job("sleep", {"seconds": 100, "pid_file": str(tmp_path / "pid")}, timeout_s=1.0)

    def strike(event):
        if event.kind == "progress":
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGSTOP)

    with ForkServer(preload=()) as own:
        results = run_jobs([made], slots=Slots(1), on_event=strike, server=own)
    assert results["sleep"].reason == "timed out after 1 s"


# whole sweeps


def test_a_sweep_that_is_terminated_leaves_results_and_a_closed_run(tmp_path):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "qsweep", "-m", "quant=rtn", "bits=2,3,4,8"),
            *(*SMALL, f"outputs_dir={tmp_path}"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    trials = tmp_path / "sweeps" / "t" / "trials"
    assert wait_until(lambda: trials.is_dir() and list(trials.glob("*.json")), 200)
    tree = psutil.Process(process.pid).children(recursive=True)
    assert tree
    process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(tree, 5)
    assert not [child for child in left if alive(child.pid)]
    out, err = process.communicate(timeout=20)
    assert process.returncode == 143
    assert err.splitlines()[-1] == "ended by SIGTERM; the same command goes on where it stopped"
    assert "Traceback" not in out + err
    done = {json.loads(file.read_text())["key"] for file in trials.glob("*.json")}
    results = (tmp_path / "sweeps" / "t" / "results.csv").read_text()
    assert all(key in results for key in done)
    assert (tmp_path / "sweeps" / "t" / "report.html").is_file()
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs(["1"])
    assert not [run for run in runs if run.info.status == "RUNNING"]
    # MLflow's import takes seconds: where it was not reached yet, nobody waits for it.
    assert runs or "qsweep sync" in err
