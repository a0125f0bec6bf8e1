"""What dies, hangs or lies: workers, heads, clocks and databases, all of them real."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
from sqlalchemy import select

from helpers.machine import alive, wait_until
from helpers.postgresql import postgresql_server
from helpers.queues import LAUNCH, Field, field
from qsweep.launch.queue import tables
from qsweep.launch.queue.database import Database
from qsweep.launch.queue.orders import NoLongerHead, Orders


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def here(request, tmp_path):
    url = None if request.param == "sqlite" else request.getfixturevalue("postgresql")
    with field(tmp_path, url) as opened:
        yield opened


def is_stopped(worker) -> bool:
    return "\nState:\tT" in open(f"/proc/{worker.pid}/status").read()


def test_a_killed_workers_job_is_taken_over(here: Field):
    first = here.worker()
    running = here.run(here.sleeper("pass", 2.5, counts=False), here.job("a", needs=("pass",)))
    pid = here.pid_of("pass")
    first.kill()
    assert wait_until(lambda: not alive(pid), 5)
    (here.folder / "pass").unlink()
    here.worker()
    results = running.result(40)
    assert results["pass"].status == results["a"].status == "finished"
    assert [e.step.split()[0] for e in here.events if e.kind == "restarted"] == ["lost"]


@pytest.mark.slow
def test_a_job_that_kills_every_worker_fails_with_the_hosts(here: Field):
    here.launcher.attempts = 2
    running = here.run(here.sleeper("a", 60))
    for _ in range(2):
        worker = here.worker()
        here.pid_of("a")
        worker.kill()
        (here.folder / "a").unlink()
    reason = running.result(40)["a"].reason
    assert reason.startswith("its worker was lost 2 times (on ") and "lease of 2 s" in reason


def test_a_worker_that_comes_back_after_its_lease_kills_its_job_and_writes_nothing(here: Field):
    stale = here.worker(MARK="stale")
    running = here.run(here.job("a", "sleep_and_tell", {"folder": str(here.folder)}))
    old = here.pid_of("stale")
    stale.send_signal(signal.SIGSTOP)
    assert wait_until(lambda: is_stopped(stale), 5)
    here.worker(MARK="fresh")
    new = here.pid_of("fresh")
    assert alive(old) and alive(new)
    stale.send_signal(signal.SIGCONT)
    assert wait_until(lambda: not alive(old), 8) and alive(new)
    assert "taken by another worker: A" in here.said(0)
    (here.folder / "go").touch()
    assert running.result(20)["a"].result == {"mark": "fresh"}


@pytest.mark.slow
def test_of_two_workers_that_finish_one_job_the_one_that_has_it_counts(here: Field):
    stale = here.worker(MARK="stale")
    running = here.run(here.job("a", "sleep_and_tell", {"folder": str(here.folder)}))
    here.pid_of("stale")
    stale.send_signal(signal.SIGSTOP)
    here.worker(MARK="fresh")
    here.pid_of("fresh")
    (here.folder / "go").touch()  # both end now, one of them unseen
    assert running.result(20)["a"].result == {"mark": "fresh"}
    stale.send_signal(signal.SIGCONT)
    assert wait_until(lambda: "too late" in here.said(0), 8)
    with here.launcher._database.reading() as connection:
        own = select(tables.jobs.c.result).where(tables.jobs.c.sweep == here.sweep)
        assert '"mark": "fresh"' in connection.scalar(own)


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [-5, 5])
def test_a_clock_that_is_minutes_off_changes_nothing(here: Field, minutes: int):
    wrong = here.folder / "wrong"
    wrong.mkdir()
    (wrong / "sitecustomize.py").write_text(
        "import time\n"
        "_time = time.time\n"
        f"time.time = lambda: _time() + {60 * minutes}\n"
        "print('clock', round(time.time() - _time()), flush=True)\n"
    )
    here.worker(PYTHONPATH=str(wrong))
    here.worker()
    results = here.run(*(here.sleeper(f"j{n}", 2.5) for n in range(2))).result(40)
    assert f"clock {60 * minutes}" in here.said(0)
    assert "started J" in here.said(0) and "started J" in here.said(1)
    assert [r.status for r in results.values()] == ["finished"] * 2
    assert all(abs(r.started - time.time()) < 30 for r in results.values())
    assert "restarted" not in [event.kind for event in here.events]


@pytest.mark.slow
def test_a_database_that_is_away_costs_neither_the_job_under_way_nor_its_result(tmp_path):
    with postgresql_server() as server, field(tmp_path, server.url) as here:
        worker = here.worker()
        running = here.run(here.sleeper("a", 2.0), here.sleeper("b", 5.0))
        here.pid_of("a")
        server.stop()
        time.sleep(4.0)  # longer than the lease and than the job
        assert worker.poll() is None
        server.start()
        results = running.result(40)
        assert [r.status for r in results.values()] == ["finished"] * 2
        assert "restarted" not in [event.kind for event in here.events]
        assert here.said().count("started A") == 1


@pytest.mark.slow
def test_a_database_that_stays_away_ends_worker_and_head_with_one_line(tmp_path):
    with postgresql_server() as server, field(tmp_path, server.url, patience_s=1.0) as here:
        worker = here.worker("--patience", "1")
        running = here.run(here.sleeper("a", 60))
        pid = here.pid_of("a")
        server.stop()
        assert worker.wait(20) == 1
        assert "error: the queue has not answered for" in here.said()
        assert not alive(pid)
        assert "launch.queue=postgresql" in str(running.exception(20))
        server.start()


class HeadProcess:
    """A head that can be killed."""

    def __init__(self, here: Field, *jobs, **options):
        given = {
            "lease_s": 2.0,
            "queue": here.url,
            "sweep": here.sweep,
            "outputs_dir": str(here.folder),
        }
        described = [asdict(job) | {"log": str(job.log)} for job in jobs]
        script = str(LAUNCH / "queue" / "head_process.py")
        self.process = subprocess.Popen(
            [sys.executable, script, json.dumps(given | options), json.dumps(described)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def end(self, number=None, seconds=30.0):
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=seconds)
        return out.splitlines(), err


@pytest.mark.slow
def test_workers_go_on_without_their_head_and_the_next_takes_over_what_they_did(here: Field):
    jobs = [
        here.sleeper("pass", 1.5, counts=False),
        here.job("a", "count", {"file": str(here.folder / "runs")}, needs=("pass",)),
        here.job("b", "fail", needs=("a",)),
        here.job("c", needs=("b",)),
        here.sleeper("long", 8.0),
    ]
    first = HeadProcess(here, *jobs)
    worker = here.worker()
    here.pid_of("pass")
    first.end(signal.SIGKILL)
    here.pid_of("long", 15)
    second = HeadProcess(here, *jobs)
    out, err = second.end()
    told = {line.split()[0]: line for line in out}
    assert second.process.returncode == 0, err
    assert told.keys() >= {"pass", "a", "b", "c", "long"}
    assert told["b"] == "b failed RuntimeError: the first line"
    assert told["c"].startswith("c failed needs B, which failed")
    assert told["long"] == "long finished None"
    assert "waiting for" not in err  # it was seen to be dead
    assert (here.folder / "runs").read_text() == "a\n"
    assert here.said().count("started PASS") == here.said().count("started LONG") == 1
    assert worker.wait(20) == 0


@pytest.mark.slow
def test_a_pass_that_fails_without_a_head_keeps_nobody_waiting(here: Field):
    flag = here.folder / "go"
    jobs = [
        here.job("pass", "fail_after", {"flag": str(flag)}, counts=False),
        here.job("a", needs=("pass",)),
    ]
    first = HeadProcess(here, *jobs)
    here.worker()
    assert wait_until(lambda: "started PASS" in here.said(), 20)
    first.end(signal.SIGKILL)
    flag.touch()
    assert wait_until(lambda: "finished A" in here.said(), 20)
    out, _ = HeadProcess(here, *jobs).end()
    assert sorted(out) == ["a finished None", "pass failed RuntimeError: as asked"]


def test_an_interrupted_head_withdraws_its_jobs_within_seconds(here: Field):
    head = HeadProcess(here, here.sleeper("a", 60), here.job("b", needs=("a",)))
    worker = here.worker()
    pid = here.pid_of("a")
    _, err = head.end(signal.SIGINT)
    assert head.process.returncode == 130
    assert "2 jobs withdrawn from the queue" in err
    assert wait_until(lambda: not alive(pid), 6)
    assert worker.wait(15) == 0


@pytest.mark.slow
def test_an_interrupted_head_may_leave_its_jobs_to_workers(here: Field):
    jobs = [here.sleeper("a", 3.0), here.job("b", needs=("a",))]
    head = HeadProcess(here, *jobs, on_interrupt="leave")
    worker = here.worker()
    here.pid_of("a")
    _, err = head.end(signal.SIGTERM)
    assert "workers go on; the same command collects the results" in err
    assert worker.wait(20) == 0
    out, _ = HeadProcess(here, *jobs).end()
    assert out == ["a finished None", "b finished None"]


@pytest.mark.slow
def test_two_heads_of_one_sweep_are_one_too_many(here: Field):
    running = here.run(here.sleeper("a", 60))
    here.worker()
    here.pid_of("a")
    _, err = HeadProcess(here, here.job("x")).end()
    assert f"error: sweep {here.sweep} is run by process {os.getpid()} on " in err
    assert "sweep=NAME" in err and not running.done()
    here.launcher._orders.withdraw()


def test_a_head_whose_sweep_was_taken_over_leaves_jobs_and_workers_to_the_next(here: Field):
    running = here.run(here.sleeper("a", 60))
    here.worker()
    pid = here.pid_of("a")
    database = here.launcher._database
    other = Orders(database, here.sweep, "elsewhere:1:y")
    other.take_over(60, 2, dead=here.launcher._orders.head)
    error = running.exception(10)
    assert isinstance(error, NoLongerHead)
    assert other.open_jobs() == 1 and alive(pid)
    here.launcher.close()
    assert here.launcher._left
    other = Orders(Database(here.url), here.sweep, "elsewhere:1:y")
    other.check()
    assert alive(pid) and other.open_jobs() == 1
    other.withdraw()


def test_only_an_interrupt_withdraws_jobs(here: Field, capsys):
    def full(*_):
        raise OSError("disk full")

    running = here.run(here.job("a"), here.job("b", needs=("a",)), on_done=full)
    here.worker()
    assert "disk full" in str(running.exception(20))
    assert (
        "what is not done is left to workers; the same command collects the results"
        in capsys.readouterr().err
    )
    here.launcher.close()
    assert wait_until(lambda: "finished B" in here.said(), 20)


def test_a_log_of_an_earlier_attempt_does_not_hide_the_new_one(here: Field):
    log = here.folder / "logs" / "a.log"
    log.parent.mkdir()
    log.write_text("of an earlier attempt")
    here.worker("--store", str(here.folder / "own store"))
    here.run(here.job("a", "speak")).result(30)
    assert "shell err" in log.read_text() and "earlier" not in log.read_text()


def test_what_a_killed_worker_left_on_its_machine_goes_with_the_next(here: Field):
    scratch = here.folder / "scratch"
    scratch.mkdir()
    own = "--store", str(here.folder / "own")
    first = here.worker(*own, TMPDIR=str(scratch))
    running = here.run(here.sleeper("a", 60))
    here.pid_of("a")
    (left,) = scratch.iterdir()
    first.kill()
    first.wait()
    here.launcher._orders.withdraw()
    running.result(20)
    here.worker("--idle", "0", TMPDIR=str(scratch)).wait(20)
    assert not left.exists()


def test_a_machine_that_can_start_nothing_gives_its_jobs_back(tmp_path):
    with field(tmp_path) as here:
        broken = here.worker(PRELOAD="dies_at_import")
        running = here.run(here.job("a"))
        assert broken.wait(30) == 1
        assert "error: no process can be started here any more" in here.said(0)
        here.worker()
        assert running.result(30)["a"].status == "finished"
