"""Runs what the store lacks of a batch of plans, on whatever launcher there is."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from qsweep.base.store import Store
from qsweep.launch import Job, JobResult, Launcher, open_display
from qsweep.sweep.jobs import device_of, missing_reference, names_of, trial_job
from qsweep.sweep.plan import Plan
from qsweep.sweep.planning import Unplanned
from qsweep.sweep.recorder import Recorder
from qsweep.sweep.recording import finished_record, unfinished_record
from qsweep.sweep.shared_calibration import Pass, Passes
from qsweep.sweep.state import Sweep
from qsweep.sweep.tensors import lacks_table


def run_plans(
    plans: Mapping[str, Plan],
    refused: Sequence[Unplanned],
    sweep: Sweep,
    store: Store,
    recorder: Recorder,
    launcher: Launcher,
) -> None:
    """Record what cannot run and what is there already, then run the rest and record that."""
    for item in refused:
        recorder.refused(item)
    missing: dict[str, Plan] = {}
    measured: set[str] = set()
    for key, plan in plans.items():
        done = finished_record(plan, store)
        whole = done and not any(task.reason for task in done.tasks or ())
        if done and whole and not lacks_table(plan, done, store):
            recorder.found(done)
            continue
        missing[key] = plan
        if whole:
            measured.add(key)
    if not missing:
        return
    launcher.prepare()
    capacity = launcher.capacity([device_of(plan) for plan in missing.values()])
    work = _Work(
        missing=missing,
        measured=measured,
        names=names_of(plans, frozenset(sweep.asked)),
        passes=Passes(missing.values(), store, capacity.jobs, capacity.memory_bytes),
        sweep=sweep,
        store=store,
        recorder=recorder,
    )
    with open_display(len(missing), sweep.name, capacity.jobs) as display:
        launcher.run(
            work.jobs(), on_event=display.event, on_done=work.record, retry=work.try_in_parts
        )


@dataclass(frozen=True)
class _Work:
    """Trials that are to run, the passes that serve them, and what becomes of their jobs."""

    missing: Mapping[str, Plan]
    measured: Collection[str]
    """Those of them that lack nothing but the table of their tensors."""
    names: Mapping[str, str]
    passes: Passes
    sweep: Sweep
    store: Store
    recorder: Recorder

    def jobs(self) -> list[Job]:
        """All of them: the passes first, since trials wait for these."""
        return self._pass_jobs(self.passes) + self._trial_jobs(self.missing.values())

    def record(self, job: Job, result: JobResult) -> None:
        """Write down what became of a trial. Of a pass its trials tell."""
        if (plan := self.missing.get(job.id)) is None:
            return
        done = finished_record(plan, self.store) if result.status == "finished" else None
        if done is None:
            status = "skipped" if result.status == "skipped" else "failed"
            reason = result.reason or "what it made is no longer in the store"
            done = unfinished_record(plan.trial, job.id, status, reason, plan.setting.model_hash)
        if done.finished and plan.key in self.measured:
            self.recorder.found(done)
        else:
            self.recorder.done(done, result.started, result.seconds)

    def try_in_parts(self, job: Job, _: JobResult) -> list[Job]:
        """A pass that died is run again in halves, for which its trials then wait."""
        concerned = [p for p in self.missing.values() if job.id in self.passes.needs(p)]
        halves = self.passes.split(job.id)
        return self._pass_jobs(halves) + self._trial_jobs(concerned)

    def _pass_jobs(self, passes: Iterable[Pass]) -> list[Job]:
        timeout_s = self.sweep.config.timeout_s
        return [
            one.job(self.store, self.sweep.log_of(one.id), timeout_s, device_of(one.plans[0]))
            for one in passes
        ]

    def _trial_jobs(self, plans: Iterable[Plan]) -> list[Job]:
        jobs = []
        for plan in plans:
            reference = missing_reference(plan, self.missing)
            needs = self.passes.needs(plan) + ((reference,) if reference is not None else ())
            log, timeout_s = self.sweep.log_of(plan.key), self.sweep.config.timeout_s
            name = self.names[plan.key]
            jobs.append(trial_job(plan, name, needs, self.store.root, log, timeout_s))
        return jobs
