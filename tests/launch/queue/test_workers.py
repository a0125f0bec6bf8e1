"""Real workers on real queues: what they do when all is well, and when they are ended in order."""

import signal
import sys
import time
from pathlib import Path

import pytest

from helpers.machine import alive, wait_until
from helpers.queues import LAUNCH, Field, field
from qsweep.base.databases import sqlite_url
from qsweep.base.errors import ConfigError
from qsweep.launch import JobResult
from qsweep.launch.protocol import Detached
from qsweep.launch.queue import QueueLauncher, head
from qsweep.launch.queue.starting import LocalWorkers
from qsweep.sweep.config import sweep_config


@pytest.fixture
def here(tmp_path):
    with field(tmp_path) as opened:
        yield opened


def test_jobs_run_in_order_with_results_logs_and_reasons(here: Field):
    here.worker()
    results = here.run(
        here.job("late", payload={"x": [1, None]}, needs=("early",)),
        here.job("early", "speak"),
        here.job("broken", "fail"),
        here.job("user", needs=("broken",)),
        here.job("never", "skip"),
        here.job("odd", payload={"x": object()}),
        here.job("slow", "sleep", {"seconds": 60}, timeout_s=0.5),
    ).result(30)
    assert results["late"].result == {"x": [1, None]}
    assert abs(results["late"].started - time.time()) < 30
    assert 0 < results["late"].seconds < 5 and results["late"].peak_host_memory_gb > 0
    assert "shell err" in (here.folder / "logs" / "early.log").read_text()
    assert results["broken"].reason == "RuntimeError: the first line"
    assert results["user"].reason.startswith("needs BROKEN, which failed: RuntimeError")
    assert results["never"] == JobResult(
        "skipped", reason="GGUF has no 7-bit type",
        **{n: getattr(results["never"], n) for n in ("seconds", "peak_host_memory_gb", "started")},
    )  # fmt: skip
    assert results["odd"].reason.startswith("its payload is not JSON")
    assert results["slow"].reason == "timed out after 0.5 s"
    order = [id for id, _ in here.done]
    assert order.index("early") < order.index("late") and len(order) == 7
    assert {e.job.id for e in here.events if e.kind == "done"} == set(order)


@pytest.mark.slow
def test_a_worker_ends_with_the_queue_or_when_it_is_idle(here: Field):
    forever, idle = here.worker(), here.worker("--idle", "0.5")
    here.run(here.job("a")).result(30)
    assert idle.wait(20) == 0 and "nothing to do for 0.5 s" in here.said(1)
    assert forever.poll() is None
    here.launcher.close()
    assert forever.wait(20) == 0 and f"sweep {here.sweep} is finished" in here.said(0)


@pytest.mark.slow
def test_several_jobs_at_once(here: Field):
    here.worker("--jobs", "3")
    running = here.run(*(here.sleeper(f"j{n}", 60) for n in range(3)))
    pids = [here.pid_of(f"j{n}") for n in range(3)]
    assert len(set(pids)) == 3
    here.launcher._orders.withdraw()
    assert wait_until(lambda: not any(map(alive, pids)), 8)
    assert here.workers[0].poll() is None
    reasons = {result.reason for result in running.result(10).values()}
    assert reasons == {"the queue no longer has it; the same command puts it there again"}


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_worker_that_is_ended_gives_its_job_back(here: Field, number):
    here.launcher.attempts = 1
    first = here.worker()
    running = here.run(here.sleeper("a", 1.5))
    pid = here.pid_of("a")
    first.send_signal(number)
    assert first.wait(10) == 128 + number
    assert not alive(pid)
    assert "given back to the queue: 1" in here.said()
    (here.folder / "a").unlink()
    here.worker()
    assert running.result(30)["a"].status == "finished"
    assert "restarted" in [event.kind for event in here.events]


def test_logs_of_machines_without_the_heads_file_system_come_through_the_queue(here: Field):
    here.worker("--store", str(here.folder / "own store"))
    jobs = [here.job("a", "speak"), here.job("much", "write_much"), here.job("b", "surroundings")]
    results = here.run(*jobs).result(30)
    assert "shell err" in (here.folder / "logs" / "a.log").read_text()
    environment = results["b"].result["environment"]
    assert environment["QSWEEP_STORE"] == str(here.folder / "own store")
    text = (here.folder / "logs" / "much.log").read_text()
    assert len(text) < 70_000 and text.endswith("the end\n")
    assert "bytes before this are left out" in text.splitlines()[0]


def test_detached_the_jobs_are_left_to_workers_and_collected_later(tmp_path):
    with field(tmp_path, detach=True) as first:
        with pytest.raises(Detached, match=f"2 jobs are in the queue; qsweep status {first.sweep}"):
            first.run(first.job("a"), first.job("b", "fail", needs=("a",))).result(30)
        first.launcher.close()
        worker = first.worker()
        assert worker.wait(30) == 0
        with field(tmp_path) as second:
            jobs = [second.job("a"), second.job("b", "fail", needs=("a",))]
            results = second.run(*jobs).result(10)
            assert results["a"].status == "finished"
            assert results["b"].reason == "RuntimeError: the first line"


def test_a_job_gets_neither_the_queues_password_nor_what_is_not_the_users(here: Field):
    here.worker(QSWEEP_QUEUE="postgresql://me:s3cret@nowhere/db")
    environment = here.run(here.job("a", "surroundings")).result(30)["a"].result["environment"]
    assert "QSWEEP_QUEUE" not in environment


def test_a_started_worker_has_the_users_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LOG", "mine")
    log = tmp_path / "workers" / "1.log"
    started = LocalWorkers()
    started.start(["/bin/sh", "-c", 'echo "$LOG $MORE"'], {"MORE": "more"}, log)
    assert wait_until(lambda: log.read_text() == "mine more\n", 5)


def test_how_many_jobs_at_once_is_handed_on_to_workers(tmp_path, capsys):
    config = {"launch": {"_target_": "qsweep.launch.queue.QueueLauncher", "start": 2}}
    config |= {"tracking": {"_target_": "qsweep.tracking.none.NoTracker"}, "n_jobs": 3}
    made = sweep_config(config | {"outputs_dir": str(tmp_path)}, "s").launcher
    assert made.worker_command("s", made.url)[-1] == "--jobs=3"
    assert made.expected(["cpu"]).jobs == 6
    QueueLauncher(n_jobs=3).start_workers("s", made.url, [])
    assert "qsweep worker sweep --outputs=" in (said := capsys.readouterr().err)
    assert said.endswith(" --jobs=3\n")
    assert QueueLauncher().worker_command("s", made.url)[-1].startswith("--queue=")


def test_sqlite_on_what_several_machines_may_share_is_refused():
    made = QueueLauncher(queue=sqlite_url(Path("/proc/not/there/queue.db")))
    with pytest.raises(ConfigError, match=r"\(proc\).*launch.queue=postgresql://"):
        made.prepare()


def test_workers_that_the_launcher_starts_end_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(LAUNCH))
    with field(tmp_path, start=2) as opened:
        opened.launcher.worker_command = light_command
        opened.run(opened.job("a"), opened.job("b")).result(30)
        assert opened.launcher._local.living() == 2
        pids = [process.pid for process, _ in opened.launcher._local._started]
        opened.launcher.close()
        assert not any(map(alive, pids))


def test_who_comes_back_finds_the_workers_that_it_started_and_starts_no_others(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(LAUNCH))
    with field(tmp_path, start=1, detach=True) as first:
        first.launcher.worker_command = light_command
        left = first.sleeper("a", 1.0), first.job("b")
        with pytest.raises(Detached):
            first.run(*left).result(30)
        (started,) = [process.pid for process, _ in first.launcher._local._started]
    with field(tmp_path, start=1) as second:
        second.launcher.worker_command = light_command
        assert {r.status for r in second.run(*left).result(30).values()} == {"finished"}
        assert [process.pid for process, _ in second.launcher._local._started] == [started]
        second.launcher.close()
        assert not alive(started)


def test_a_job_that_no_worker_can_take_is_told_of_once(here: Field, capsys, monkeypatch):
    monkeypatch.setattr(head, "_LOOK_EVERY_S", 0.1)
    here.worker("--device", "cpu")
    running = here.run(here.job("a", device="cuda"))
    told = ""

    def heard() -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return "what is ready asks for cuda, and the 1 worker there has no GPUs" in told

    assert wait_until(heard, 20)
    time.sleep(1.0)
    assert "no job can start" not in capsys.readouterr().err
    here.launcher._orders.withdraw()
    running.result(10)


@pytest.mark.slow
def test_when_no_worker_will_come_the_jobs_fail_and_say_why(tmp_path):
    with field(tmp_path, start=1) as opened:
        opened.launcher.worker_command = lambda *_: ["/bin/sh", "-c", "echo no such module; exit 1"]
        results = opened.run(opened.job("a"), opened.job("b", needs=("a",))).result(30)
        assert results["a"].reason == "all workers have ended: no such module"
        assert results["b"].status == "failed"


def light_command(sweep: str, queue: str) -> list[str]:
    return [sys.executable, str(LAUNCH / "queue" / "light_worker.py"), sweep, f"--queue={queue}"]
