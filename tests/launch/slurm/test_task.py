"""A task of the array: how its command ends, and what it hears of Slurm's signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("submitit")

# Tells what signal it gets and ends; its own child is a program that knows nothing of signals.
COMMAND = """
import signal, subprocess, sys
child = subprocess.Popen(["sleep", "60"])
def end(number, _):
    print(signal.Signals(number).name, "child", child.poll(), flush=True)
    child.kill()
    sys.exit(3)
for number in (signal.SIGTERM, signal.SIGXCPU):
    signal.signal(number, end)
print("ready", child.pid, flush=True)
signal.pause()
"""
# What submitit does in a task.
TASK = """
import signal, sys
from qsweep.launch.slurm.task import Task, announcement
task = Task([sys.executable, "-c", sys.argv[1]], delay_s=30, requeue=sys.argv[2] == "requeue")
def checkpoint(*_):
    again = task.checkpoint()
    print("again", again and again.function.command == task.command, flush=True)
    sys.exit(9)
signal.signal(announcement(), checkpoint)
task()
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Start a task outside of Slurm, whose queue says when its time ends; its process and child."""
    processes = []

    def start(ends, requeue="requeue"):
        squeue = tmp_path / "bin" / "squeue"
        squeue.parent.mkdir(exist_ok=True)
        squeue.write_text(f"#!/bin/sh\n{ends}\n")
        squeue.chmod(0o755)
        monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
        task = subprocess.Popen(
            [sys.executable, "-c", TASK, COMMAND, requeue], stdout=subprocess.PIPE, text=True
        )
        processes.append(task)
        return task, int(task.stdout.readline().split()[1])

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ("date -d '+50 seconds' +%FT%T", "SIGXCPU"),
        ("date -d '+600 seconds' +%FT%T", "SIGTERM"),  # preempted
        ("exit 1", "SIGXCPU"),  # Slurm does not say
    ],
)
def test_a_worker_is_told_whether_its_time_is_up(started, ends, expected):
    task, _ = started(ends)
    task.send_signal(signal.SIGUSR2)
    assert task.stdout.readline() == f"{expected} child None\n"
    assert task.stdout.readline() == "again True\n"
    assert task.wait(10) == 9


def test_nothing_that_a_worker_starts_dies_of_the_announcement(started):
    task, child = started("date -d '+600 seconds' +%FT%T")
    os.kill(child, signal.SIGUSR2)  # as Slurm does, to every process
    time.sleep(0.2)
    os.kill(child, 0)
    task.send_signal(signal.SIGUSR2)
    assert task.stdout.readline() == "SIGTERM child None\n"


def test_a_task_that_is_not_to_be_queued_again_leaves_nothing_to_run(started):
    task, _ = started("exit 1", requeue="never")
    task.send_signal(signal.SIGUSR2)
    task.stdout.readline()
    assert task.stdout.readline() == "again None\n"


@pytest.mark.parametrize(("line", "status"), [("pass", 0), ("exit(5)", 5)])
def test_a_task_ends_as_its_command_ended(line, status):
    code = f"import sys; from qsweep.launch.slurm.task import Task; Task(['python3', '-c', '{line}'], 9)()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == status


def test_a_task_whose_command_is_killed_ends_as_shells_have_it():
    code = "from qsweep.launch.slurm.task import Task; Task(['sh', '-c', 'kill -9 $$'], 9)()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 137
