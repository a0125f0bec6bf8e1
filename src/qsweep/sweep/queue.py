"""Jobs of a batch of plans, one for each, behind the passes that make artifacts of several at once."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from qsweep.base.store import Store
from qsweep.launch import Job, JobResult, Launcher, open_display
from qsweep.sweep.jobs import device_of, plan_job
from qsweep.sweep.plan import Plan
from qsweep.sweep.shared_calibration import Pass, Passes
from qsweep.sweep.state import Sweep


def run_queue(
    plans: Mapping[str, Plan],
    names: Mapping[str, str],
    target: str,
    sweep: Sweep,
    store: Store,
    launcher: Launcher,
    *,
    on_done: Callable[[Job, JobResult], None],
    waits_for: Callable[[Plan], tuple[str, ...]] = lambda _: (),
) -> None:
    """Run a job for each of some plans, on whatever launcher there is.

    Args:
        plans: By key, which is the id of the job; at least one.
        names: What jobs are called, by key.
        target: What a job of one plan calls, as ``module:function``.
        sweep: Whose folder the logs go into, and whose time limit holds.
        store: Where artifacts are.
        launcher: Who runs the jobs.
        on_done: Called with every job that is done, passes among them.
        waits_for: The ids of jobs that a plan's job waits for, beside its passes.
    """
    launcher.prepare()
    capacity = launcher.capacity([device_of(plan) for plan in plans.values()])
    with store.planning():
        passes = Passes(plans.values(), store, capacity.jobs, capacity.memory_bytes)
    queue = _Queue(plans, names, target, passes, sweep, store, waits_for)
    with open_display(len(plans), sweep.name, capacity.jobs) as display:
        launcher.run(
            queue.jobs(), on_event=display.event, on_done=on_done, retry=queue.try_in_parts
        )


@dataclass(frozen=True)
class _Queue:
    plans: Mapping[str, Plan]
    names: Mapping[str, str]
    target: str
    passes: Passes
    sweep: Sweep
    store: Store
    waits_for: Callable[[Plan], tuple[str, ...]]

    def jobs(self) -> list[Job]:
        """All of them: the passes first, since the others wait for these."""
        return self._pass_jobs(self.passes) + self._plan_jobs(self.plans.values())

    def try_in_parts(self, job: Job, _: JobResult) -> list[Job]:
        """A pass that died is run again in halves, for which its plans' jobs then wait."""
        concerned = [p for p in self.plans.values() if job.id in self.passes.needs(p)]
        halves = self.passes.split(job.id)
        return self._pass_jobs(halves) + self._plan_jobs(concerned)

    def _pass_jobs(self, passes: Iterable[Pass]) -> list[Job]:
        timeout_s = self.sweep.config.timeout_s
        return [
            one.job(self.store, self.sweep.log_of(one.id), timeout_s, device_of(one.plans[0]))
            for one in passes
        ]

    def _plan_jobs(self, plans: Iterable[Plan]) -> list[Job]:
        return [
            plan_job(
                plan,
                self.names[plan.key],
                self.target,
                self.passes.needs(plan) + self.waits_for(plan),
                self.store,
                self.sweep.log_of(plan.key),
                self.sweep.config.timeout_s,
            )
            for plan in plans
        ]
