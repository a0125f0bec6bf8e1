"""What a worker does when a scheduler ends it: its time is up, or all its processes get a signal."""

import os
import signal
import time

import pytest

from helpers.machine import alive
from helpers.queues import Field, field


@pytest.fixture
def here(tmp_path):
    with field(tmp_path) as opened:
        yield opened


def test_time_that_is_up_costs_what_had_most_of_it_an_attempt(here: Field):
    here.launcher.attempts = 1
    worker = here.worker("--jobs", "2")
    jobs = [here.sleeper(id, seconds) for id, seconds in (("long", 60), ("short", 3), ("late", 2))]
    running = here.run(*jobs)
    here.pid_of("late")
    (here.folder / "late").unlink()
    worker.send_signal(signal.SIGXCPU)
    assert worker.wait(20) == 128 + signal.SIGXCPU
    assert "given back to the queue: 2" in here.said()
    here.worker()
    results = running.result(30)
    reason = results["long"].reason
    assert reason.startswith("not done when its worker's time was up, once (on ")
    assert "give workers more time" in reason and "launch.time=" in reason
    assert results["late"].status == "finished"


def test_a_worker_may_be_told_how_many_jobs_to_take(here: Field):
    worker = here.worker("--take", "1", "--jobs", "3")
    running = here.run(here.job("a"), here.job("b"))
    assert worker.wait(30) == 0
    assert "has taken as many jobs as it was to take" in here.said()
    assert [id for id, _ in here.done] in (["a"], [])
    here.worker("--take=2")
    assert {result.status for result in running.result(30).values()} == {"finished"}


def test_a_job_that_is_ended_together_with_its_worker_is_given_back(here: Field):
    here.launcher.attempts = 1
    worker = here.worker()
    running = here.run(here.sleeper("a", 3))
    job = here.pid_of("a")
    (here.folder / "a").unlink()
    os.kill(job, signal.SIGTERM)  # first, as it may be
    time.sleep(0.3)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 143
    assert "given back to the queue: 1" in here.said()
    here.worker()
    assert running.result(30)["a"].status == "finished"


def test_a_job_that_is_ended_alone_has_failed(here: Field):
    here.worker()
    running = here.run(here.sleeper("a", 30))
    job = here.pid_of("a")
    os.kill(job, signal.SIGTERM)
    assert running.result(30)["a"].reason == "killed by signal 15 (SIGTERM)"
    assert not alive(job)
