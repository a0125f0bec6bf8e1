"""Workers that a real Slurm runs: what becomes of jobs whatever happens to workers and nodes."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from helpers.machine import alive
from helpers.slurm import Slurm, cluster, slurm, until  # noqa: F401
from qsweep.base.errors import ConfigError
from qsweep.launch import Job
from qsweep.launch.protocol import Detached
from qsweep.launch.slurm import SlurmLauncher, launcher
from qsweep.launch.slurm.array import Array

pytestmark = pytest.mark.cluster
pytest.importorskip("submitit")

LAUNCH = Path(__file__).parents[1]


class Light(SlurmLauncher):
    """Its workers do without the slow imports, which the jobs of these tests have no use for."""

    def worker_command(self, sweep: str, queue: str) -> list[str]:
        _, _, _, _, *rest = super().worker_command(sweep, queue)
        return [sys.executable, str(LAUNCH / "queue" / "light_worker.py"), *rest]


class Head:
    """A head in a thread of this process, with jobs that note where they run."""

    def __init__(self, folder: Path, **options):
        self.folder = folder
        options = {
            "lease_s": 3.0,
            "signal_delay_s": 20,
            "time": 30,
            "outputs_dir": folder,
        } | options
        self.launcher = Light(sweep="s", **options)
        self.done, self.events = [], []
        self._threads = ThreadPoolExecutor(1)

    def job(self, id, function="echo", payload=None, **options):
        log = self.folder / "logs" / f"{id}.log"
        return Job(id, id.upper(), f"launch_targets:{function}", payload or {}, log, **options)

    def sleeper(self, id, seconds, **options):
        payload = {"seconds": seconds, "pid_file": str(self.folder / id)}
        return self.job(id, "sleep", payload, **options)

    def pid_of(self, id, seconds=30.0):
        file = self.folder / id
        return int(until(lambda: file.exists() and file.read_text(), seconds, f"job {id}"))

    def run(self, *jobs):
        return self._threads.submit(
            self.launcher.run,
            jobs,
            on_event=self.events.append,
            on_done=lambda job, result: self.done.append((job.id, result)),
        )

    def close(self):
        self.launcher.close()
        self._threads.shutdown()

    @property
    def array(self):
        return Array.recorded(self.launcher.folder).jobs[-1]

    def log(self, task=0):
        """What a task of the array, and the worker in it, have written."""
        logs = list(self.launcher.folder.glob(f"{self.array}*_log.out"))
        return sorted(logs)[task].read_text() if len(logs) > task else ""


@pytest.fixture
def head(tmp_path, monkeypatch, slurm: Slurm):  # noqa: F811
    """Make a head, whose workers find what they import."""
    monkeypatch.setenv("PYTHONPATH", str(LAUNCH))
    monkeypatch.setattr(launcher, "_LOOK_EVERY_S", 0.5)
    heads = []

    def make(**options):
        heads.append(Head(tmp_path, **options))
        return heads[-1]

    yield make
    for one in heads:
        one.close()


def node_of(slurm, task):  # noqa: F811
    return next(node for id, _, _, node in slurm.jobs("-t", "all") if id == task)


def test_workers_on_two_nodes_share_the_jobs(head, slurm):  # noqa: F811
    field = head(workers=3, cpus_per_task=1)
    jobs = [field.job(f"j{n}", "surroundings") for n in range(3)]
    sleepers = [field.sleeper(f"s{n}", 2) for n in range(6)]
    results = field.run(*sleepers, *jobs, field.job("z", needs=("s0",))).result(60)
    assert all(result.status == "finished" for result in results.values())
    assert len(results) == 10
    nodes = {node_of(slurm, f"{field.array}_{n}") for n in range(3)}
    assert nodes == {"n1", "n2"}
    seen = [results[job.id].result["environment"] for job in jobs]
    assert all(one["SLURM_JOB_NAME"] == "qsweep-s" for one in seen)
    assert not any("SLURM_ARRAY_TASK_ID" not in one for one in seen)
    field.launcher.close()
    until(lambda: not slurm.jobs(), 20, "the end of the workers")
    states = [state for id, state, *_ in slurm.jobs("-t", "all") if id.startswith(field.array)]
    assert states == ["COMPLETED"] * 3


def test_no_more_workers_than_jobs_and_none_twice(head, slurm):  # noqa: F811
    field = head(workers=8)
    first = field.run(field.job("a"))
    assert first.result(30)["a"].status == "finished"
    assert len(slurm.jobs("-t", "all")) >= 1
    one = field.array
    field.run(field.job("a"), field.job("b")).result(30)
    assert field.array != one  # there are more jobs now
    field.run(field.job("c")).result(30)
    assert len(Array.recorded(field.launcher.folder).jobs) == 2


def test_a_job_for_each_trial(head, slurm):  # noqa: F811
    field = head(per="job", array_parallelism=2)
    results = field.run(*(field.job(f"j{n}") for n in range(4))).result(60)
    assert all(result.status == "finished" for result in results.values())
    until(lambda: not slurm.jobs(), 20, "the end of the workers")
    mine = [state for id, state, *_ in slurm.jobs("-t", "all") if id.startswith(field.array)]
    assert mine == ["COMPLETED"] * 4
    assert all("has taken as many jobs" in field.log(n) for n in range(4))


def test_what_comes_of_a_job_that_has_a_task_of_its_own_gets_one(head, slurm):  # noqa: F811
    field = head(per="job")
    parts = [field.job("part1"), field.job("part2")]
    running = field._threads.submit(
        field.launcher.run,
        [field.job("whole", "fail")],
        retry=lambda job, _: parts if job.id == "whole" else (),
    )
    results = running.result(90)
    assert results["part1"].status == results["part2"].status == "finished"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "nowhere"}, "sbatch says: invalid partition specified: nowhere"),
        ({"gpus_per_node": 1}, "Invalid generic resource (gres) specification"),
        ({"exclude": "n[1-2]"}, "Requested node configuration is not available"),
        ({"additional_parameters": {"no-such": 1}}, "no-such"),
        ({"workers": 5000}, "Invalid job array specification"),
    ],
)
def test_what_slurm_does_not_take_it_says_in_one_line(head, options, words, capfd):
    field = head(**options)
    jobs = [field.job(f"j{n}") for n in range(options.get("workers", 1))]
    with pytest.raises(ConfigError) as caught:
        field.run(*jobs).result(30)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "error" not in capfd.readouterr().err


def test_workers_that_can_never_start_end_the_wait(head, slurm, monkeypatch):  # noqa: F811
    monkeypatch.setattr(launcher, "_STUCK_S", 2.0)
    field = head(partition="closed")
    result = field.run(field.job("a")).result(60)["a"]
    assert result.status == "failed"
    assert "1 pending (PartitionDown): it cannot start" in result.reason
    field.launcher.close()
    until(lambda: not slurm.jobs(), 10, "the cancelled workers")


def test_workers_that_an_administrator_cancels_end_the_wait(head, slurm):  # noqa: F811
    field = head()
    running = field.run(field.sleeper("a", 60))
    field.pid_of("a")
    slurm.said("scancel", field.array)
    result = running.result(90)["a"]
    assert result.status == "failed" and "1 cancelled (n1): all workers have ended" in result.reason


def test_a_worker_that_cannot_begin_says_why(head, slurm):  # noqa: F811
    field = head(setup=["echo no module of that name >&2", "exit 1"])
    result = field.run(field.job("a")).result(60)["a"]
    assert result.status == "failed"
    assert "1 failed (n1): all workers have ended: no module of that name" in result.reason


def test_a_preempted_worker_gives_its_job_back_and_is_queued_again(head, slurm):  # noqa: F811
    field = head(workers=1, attempts=1, lease_s=60.0, cpus_per_task=2)
    running = field.run(field.sleeper("a", 4))
    pid = field.pid_of("a")
    (field.folder / "a").unlink()
    slurm.said("sbatch", "-p", "urgent", "-N2", "-c2", "-o/dev/null", "--wrap", "sleep 3")
    until(lambda: not alive(pid), 20, "the preemption")
    until(lambda: "given back to the queue: 1" in field.log(), 10, "the job")
    assert field.pid_of("a", 40) != pid
    assert running.result(40)["a"].status == "finished"
    assert field.log().count("started A") == 2


def test_a_job_that_time_runs_out_for_is_tried_again_and_fails_in_the_end(head, slurm):  # noqa: F811
    field = head(attempts=2, time=1)
    running = field.run(field.sleeper("a", 300), field.job("b", needs=("a",)))
    results = running.result(240)
    assert results["a"].status == "failed"
    assert "worker's time was up, 2 times" in results["a"].reason
    assert "launch.time=" in results["a"].reason
    assert "needs A, which failed" in results["b"].reason
    assert field.log().count("started A") == 2
    assert "timed out too many times" not in field.log()


def test_time_that_runs_out_for_what_began_late_costs_no_attempt(head, slurm):  # noqa: F811
    field = head(attempts=1, time=2)
    jobs = [field.sleeper("early", 14), field.sleeper("late", 4)]
    running = field.run(*jobs)
    field.pid_of("late")
    time.sleep(0.5)
    (field.folder / "late").unlink()
    slurm.said("scontrol", "update", f"JobId={field.array}", "TimeLimit=1")
    slurm.said("scancel", "--signal=USR2", field.array)
    results = running.result(60)
    assert results["late"].status == "finished"
    assert field.log().count("started LATE") == 2


def test_a_head_within_a_job_of_slurm_hands_on_nothing_of_that(head, slurm, monkeypatch):  # noqa: F811
    for name, value in {"SLURM_JOB_ID": "1", "SRUN_CPUS_PER_TASK": "64"}.items():
        monkeypatch.setenv(name, value)
    field = head(cpus_per_task=1)
    result = field.run(field.job("a", "surroundings")).result(30)["a"]
    assert result.status == "finished", result.reason
    assert result.result["environment"]["SLURM_CPUS_PER_TASK"] == "1"
    assert "SLURM_CONF" in os.environ


def test_the_signal_before_its_time_is_a_preemption(head, slurm):  # noqa: F811
    field = head(attempts=1)
    running = field.run(field.sleeper("a", 3))
    field.pid_of("a")
    (field.folder / "a").unlink()
    slurm.said("scancel", "--signal=USR2", field.array)
    field.pid_of("a")
    assert running.result(60)["a"].status == "finished"
    assert field.log().count("given back to the queue: 1") == 1


def test_more_jobs_than_an_array_may_have_follow_one_another(head, monkeypatch):
    monkeypatch.setattr(launcher, "_LARGEST_ARRAY", 2)
    field = head(per="job")
    results = field.run(*(field.job(f"j{n}") for n in range(3))).result(60)
    assert {result.status for result in results.values()} == {"finished"}
    assert len(Array.recorded(field.launcher.folder).jobs) == 2


def test_a_worker_that_is_killed_loses_its_job_to_another(head, slurm):  # noqa: F811
    field = head(workers=2)
    running = field.run(field.sleeper("a", 8), field.sleeper("b", 8))
    pid = field.pid_of("a")
    field.pid_of("b")
    worker = next(p for p in psutil.Process(pid).parents() if "light_worker.py" in p.cmdline()[1])
    (field.folder / "a").unlink()
    worker.kill()
    until(lambda: not alive(pid), 5, "the job's end with its worker")
    field.pid_of("a")
    assert {result.status for result in running.result(60).values()} == {"finished"}


def test_a_node_that_is_lost_costs_an_attempt(head, slurm):  # noqa: F811
    field = head(workers=4, cpus_per_task=1)
    jobs = [field.sleeper(f"j{n}", 10) for n in range(4)]
    running = field.run(*jobs)
    for job in jobs:
        field.pid_of(job.id)
    assert node_of(slurm, f"{field.array}_3") == "n2"
    slurm.kill_node("n2")
    results = running.result(120)
    assert {result.status for result in results.values()} == {"finished"}
    assert "restarted" in [event.kind for event in field.events]
    until(lambda: slurm.state("n2") == "down", 60, "the loss of the node")
    slurm.start_node("n2")
    until(lambda: slurm.state("n2") != "down", 30, "the return of the node")


@pytest.mark.parametrize("pause_s", [0.0, 1.0, 5.0])
def test_a_head_right_after_another_gets_workers(head, pause_s):
    first = head()
    first.run(first.job("a")).result(30)
    first.launcher.close()
    time.sleep(pause_s)  # its worker hears of the end within some seconds
    second = head()
    assert second.run(second.job("b")).result(60)["b"].status == "finished"


def test_a_head_that_leaves_comes_back_to_the_same_workers(head, slurm):  # noqa: F811
    first = head(workers=2, detach=True)
    jobs = [first.sleeper(f"j{n}", 6) for n in range(2)]
    with pytest.raises(Detached, match="2 jobs are in the queue"):
        first.run(*jobs).result(30)
    first.launcher.close()
    first.pid_of("j0")
    second = head(workers=2)
    results = second.run(*jobs).result(60)
    assert {result.status for result in results.values()} == {"finished"}
    assert len(Array.recorded(second.launcher.folder).jobs) == 1
