"""What may start when, told without running anything."""

import time
from pathlib import Path

import pytest

from qsweep.launch import Event, Job, JobResult
from qsweep.launch.flow import Flow

DONE, BROKEN = JobResult("finished", {}), JobResult("failed", reason="broken")


def job(id: str, *needs: str, device: str = "auto") -> Job:
    return Job(id, id.upper(), "nowhere:at_all", {}, Path("log"), needs=needs, device=device)


def ids(flow: Flow) -> list[str]:
    return [one.id for one in flow.heads()]


def run(flow: Flow, failing: tuple[str, ...] = ()) -> list[str]:
    """Run all, one after another; the order in which they started."""
    order = []
    while heads := flow.heads():
        one = heads[0]
        order.append(one.id)
        flow.started(one)
        flow.ended(one, BROKEN if one.id in failing else DONE)
    return order


def test_jobs_start_in_their_order_once_what_they_need_has_finished():
    flow = Flow([job("late", "early"), job("early"), job("other")])
    assert run(flow) == ["early", "late", "other"]
    assert not flow
    assert set(flow.results) == {"late", "early", "other"}


def test_what_a_failed_job_was_needed_for_fails_down_the_chain():
    told: list[tuple[str, JobResult]] = []
    flow = Flow(
        [job("a"), job("b", "a"), job("c", "b"), job("d")],
        on_done=lambda one, result: told.append((one.id, result)),
    )
    assert run(flow, ("a",)) == ["a", "d"]
    assert [id for id, _ in told] == ["a", "b", "c", "d"]
    assert told[2][1].reason == "needs B, which failed: needs A, which failed: broken"


def test_a_chain_longer_than_the_stack():
    count = 5000
    flow = Flow([job("0"), *(job(str(n), str(n - 1)) for n in range(1, count))])
    run(flow, ("0",))
    assert {result.status for result in flow.results.values()} == {"failed"}


def test_every_device_has_a_head_of_its_own():
    flow = Flow([job("x", device="cuda:0"), job("y", device="cuda:0"), job("z", device="cpu")])
    assert ids(flow) == ["x", "z"]
    flow.started(flow.heads()[0])
    assert ids(flow) == ["y", "z"]


def test_parts_of_a_failed_job_run_before_the_rest_and_are_waited_for():
    def halves(one: Job, _: JobResult) -> list[Job]:
        return [job("half"), job("user", "half")] if one.id == "whole" else []

    flow = Flow([job("whole"), job("rest"), job("user", "whole")], retry=halves)
    assert run(flow, ("whole",)) == ["whole", "half", "user", "rest"]
    assert flow.results["user"].status == "finished"
    assert flow.results["whole"].reason == "broken; tried again in parts"


def test_a_lost_job_waits_again_before_all_others():
    events: list[Event] = []
    flow = Flow([job("a"), job("b")], on_event=events.append)
    lost = flow.heads()[0]
    flow.started(lost)
    flow.restarted(lost, "its machine is gone")
    assert run(flow) == ["a", "b"]
    assert [(e.kind, e.job.id) for e in events] == [
        ("restarted", "a"),
        ("done", "a"),
        ("done", "b"),
    ]


def test_what_waited_for_a_job_that_is_passed_over_goes_on_without():
    flow = Flow([job("pass"), job("a", "pass"), job("b", "a", "pass"), job("other")])
    first = flow.heads()[0]
    flow.started(first)
    flow.passed_over(first, BROKEN)
    assert run(flow) == ["a", "b", "other"]
    assert flow.results["pass"] == BROKEN and flow.results["b"] == DONE


def test_a_job_may_be_added_while_others_run():
    flow = Flow([job("a")])
    flow.started(flow.heads()[0])
    flow.add(job("b", "a"))
    flow.add(job("c"))
    assert ids(flow) == ["c"]
    for one, why in ((job("c"), "the same id"), (job("d", "e"), "needs unknown jobs: e")):
        with pytest.raises(ValueError, match=why):
            flow.add(one)
    flow.ended(job("a"), DONE)
    assert run(flow) == ["b", "c"]


def test_nothing_waits_when_nothing_can_be_started_any_more():
    flow = Flow([job("a"), job("b", "a"), job("c")])
    flow.finish_all(BROKEN)
    assert not flow
    assert len(flow.results) == 3


@pytest.mark.parametrize(
    ("jobs", "why"),
    [
        ([job("a"), job("a")], "the same id"),
        ([job("a", "b")], "needs unknown jobs: b"),
        ([job("a", "b"), job("b", "a")], "in a circle: a, b"),
    ],
)
def test_jobs_that_can_never_run_are_refused_at_once(jobs: list[Job], why: str):
    with pytest.raises(ValueError, match=why):
        Flow(jobs)


def test_ten_thousand_jobs_cost_no_more_than_ten_times_a_thousand():
    def seconds(count: int) -> float:
        jobs = [job("r"), *(job(str(n), "r") for n in range(count))]
        began = time.process_time()
        run(Flow(jobs))
        return time.process_time() - began

    # The least of several: what else the machine does is no part of it.
    small, large = (min(seconds(count) for _ in range(3)) for count in (1000, 10_000))
    assert large < 40 * small  # a quadratic step: 100 times
