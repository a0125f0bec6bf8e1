"""Run jobs, each in a process of its own, and say what became of each."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qsweep.launch import interrupts
from qsweep.launch.flow import Flow
from qsweep.launch.job import Event, Job, JobResult, Status
from qsweep.launch.local.client import Child, ForkServer, ServerEvent
from qsweep.launch.local.slots import Placement, Slots, place_job, why_unplaceable
from qsweep.launch.protocol import ignore, no_retry
from qsweep.launch.reasons import explain, explain_exit

# A server that dies this often in a row without having started a job will not get better.
_STARTS = 3
# A job whose server was killed under it runs once more: it may not have been its fault.
_ATTEMPTS = 2
# A Ctrl-C that comes a moment before a wait begins does not end it: Python looks after the wait.
_LONGEST_WAIT_S = 1.0


def run_jobs(
    jobs: Sequence[Job],
    *,
    slots: Slots,
    on_event: Callable[[Event], None] = ignore,
    on_done: Callable[[Job, JobResult], None] = ignore,
    retry: Callable[[Job, JobResult], Sequence[Job]] = no_retry,
    server: ForkServer | None = None,
) -> dict[str, JobResult]:
    """Run jobs in their order, as many at once as there are slots.

    Args:
        jobs: what to run. One whose needs fail, fails; one whose needs are skipped, is skipped.
        slots: how many at once, and on which devices.
        on_event: called here for whatever a display may want to know.
        on_done: called here with every job as soon as it is done, so that it can be recorded.
        retry: called with every job that ran and did not finish; gives the jobs to run instead of
            it, those first, and those that are to stand in for waiting ones of the same id.
        server: the fork server to use; it stays open. By default one is started and closed.

    Returns:
        The result of every job, by id, those that were tried again included. No job's death raises
        anything.

    Raises:
        ValueError: ids that occur twice, needs that are not among the jobs, or that form a circle.
        KeyboardInterrupt: after every running job was killed; what was done was reported.
    """
    flow = Flow(jobs, on_event=on_event, on_done=on_done, retry=retry)
    used = ForkServer() if server is None else server
    try:
        Runner(slots, used, flow).run_all()
    except BaseException:
        interrupts.acknowledge()
        used.close()
        raise
    if server is None:
        used.close()
    return {job.id: flow.results[job.id] for job in jobs} | flow.results


@dataclass
class Runner:
    """Runs what a flow offers, as long as somebody calls :meth:`step`.

    Attributes:
        slots: How many jobs at once, and on which devices.
        server: Starts their processes. Whoever made it closes it.
        flow: Gives jobs, and is told of their ends; more may be added to it at any time.
    """

    slots: Slots
    server: ForkServer
    flow: Flow
    running: dict[Child, Placement] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)

    def run_all(self) -> None:
        """Go on until every job of the flow has a result."""
        while self.flow:
            self.step()

    def step(self, longest_s: float = _LONGEST_WAIT_S) -> None:
        """Start what can be, then wait for something to happen; not if nothing runs."""
        interrupts.check()
        self._start_ready_jobs()
        if not self.running:
            return
        for event in self.server.wait(min(self._wait_timeout(), longest_s)):
            self._handle_event(event)
        self._kill_timed_out()

    def kill(self, id: str) -> None:
        """Kill a job and all that it started; its end is told to the flow like any other."""
        for child in self.running:
            if child.job.id == id:
                self.server.kill(child)

    @property
    def stuck(self) -> bool:
        """Whether no process can be started here any more."""
        return self.server.deaths_before_start >= _STARTS

    def _start_ready_jobs(self) -> None:
        while any([self._start_if_possible(job) for job in self.flow.heads()]):
            pass

    def _start_if_possible(self, job: Job) -> bool:
        """Start a job, or say why it never can be; whether one of these was done."""
        if (reason := why_unplaceable(self.slots, job.device)) is not None:
            self.flow.finish(job, JobResult("skipped", reason=reason))
            return True
        where = place_job(self.slots, job.device, list(self.running.values()))
        if where is not None:
            self._start(job, where)
        return where is not None

    def _start(self, job: Job, where: Placement) -> None:
        try:
            child = self.server.submit(job, where.environment, self.slots.threads)
        except (TypeError, ValueError) as error:
            why = f"its payload is not JSON: {error}"
        except OSError as error:
            why = f"cannot be started: {explain(error)}"
        else:
            self.running[child] = where
            self.flow.started(job)
            return
        self.flow.finish(job, JobResult("failed", reason=why))

    def _wait_timeout(self) -> float:
        deadlines = [child.deadline for child in self.running if child.deadline is not None]
        left = min(deadlines, default=math.inf) - time.monotonic()
        return min(max(left, 0.0), _LONGEST_WAIT_S)

    def _kill_timed_out(self) -> None:
        for child in self.running:
            if child.deadline is not None and child.deadline <= time.monotonic():
                child.deadline, child.timed_out = None, True
                self.server.kill(child)

    def _handle_event(self, event: ServerEvent) -> None:
        child = event.child
        if event.kind == "lost":
            self._handle_server_death(child, event.facts["reason"])
        elif child is None:
            return
        elif event.kind == "started":
            self.flow.on_event(Event("started", child.job))
        elif event.kind == "progress":
            facts = event.facts
            self.flow.on_event(
                Event("progress", child.job, step=facts["step"], share=facts["share"])
            )
        elif event.kind == "refused":
            self._record_end(child, JobResult("failed", reason=event.facts["reason"]))
        elif event.kind == "ended":
            self._record_end(child, _result(child, event.facts))

    def _handle_server_death(self, child: Child | None, reason: str) -> None:
        stuck = self.stuck
        why = f"the process that starts jobs died: {reason}"
        if child is not None:
            losses = self.losses.get(child.job.id, 0) + (child.pid is not None)
            self.losses[child.job.id] = losses
            if child.timed_out:
                self._record_end(
                    child, JobResult("failed", reason=_timeout_reason(child), started=child.started)
                )
            elif stuck or losses >= _ATTEMPTS:
                self._record_end(child, JobResult("failed", reason=why, started=child.started))
            else:
                self.running.pop(child)
                child.close()
                self.flow.restarted(child.job, why)
        if stuck:
            self.flow.finish_all(JobResult("failed", reason=why))

    def _record_end(self, child: Child, result: JobResult) -> None:
        self.running.pop(child)
        if child.outcome() is None and result.reason:
            # What the job could not write itself.
            with contextlib.suppress(OSError), child.job.log.open("a") as log:
                log.write(f"qsweep: {result.reason}\n")
        child.close()
        self.flow.ended(child.job, result)


def _result(child: Child, facts: dict[str, Any]) -> JobResult:
    """Read what a job left behind, together with how its process ended."""
    outcome = child.outcome()
    status: Status = "failed"
    result = reason = None
    if child.timed_out and not (outcome and facts["status"] == 0):
        reason = _timeout_reason(child)
    elif outcome is None or ("result" in outcome and facts["status"] != 0):
        reason = explain_exit(facts["status"], kernel_oom=facts["kernel_oom"], log=child.job.log)
    elif "result" in outcome:
        status, result = "finished", outcome["result"]
    else:
        status, reason = outcome["status"], outcome["reason"]
    return JobResult(
        status=status,
        result=result,
        reason=reason,
        seconds=facts["seconds"],
        peak_host_memory_gb=facts["peak_bytes"] / 1e9,
        started=child.started,
    )


def _timeout_reason(child: Child) -> str:
    return f"timed out after {child.job.timeout_s:g} s"
