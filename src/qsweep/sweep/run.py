"""Runs what the store lacks of a batch of plans, on whatever launcher there is."""

from collections.abc import Mapping, Sequence

from qsweep.base.store import Store
from qsweep.launch import Job, JobResult, Launcher
from qsweep.sweep.jobs import missing_reference, names_of
from qsweep.sweep.plan import Plan
from qsweep.sweep.planning import Unplanned
from qsweep.sweep.queue import run_queue
from qsweep.sweep.recorder import Recorder
from qsweep.sweep.recording import finished_record, unfinished_record
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
    # Those of them that lack nothing but the table of their tensors.
    measured: set[str] = set()
    with store.planning():
        for key, plan in plans.items():
            done = finished_record(plan, store)
            whole = done and not any(task.reason for task in done.tasks or ())
            if done and whole and not lacks_table(plan, done, store):
                recorder.found(done)
                continue
            missing[key] = plan
            if whole:
                measured.add(key)

    def record(job: Job, result: JobResult) -> None:
        """Write down what became of a trial. Of a pass its trials tell."""
        if (plan := missing.get(job.id)) is None:
            return
        done = finished_record(plan, store) if result.status == "finished" else None
        if done is None:
            status = "skipped" if result.status == "skipped" else "failed"
            reason = result.reason or "what it made is no longer in the store"
            done = unfinished_record(plan.trial, job.id, status, reason, plan.setting.model_hash)
        if done.finished and plan.key in measured:
            recorder.found(done)
        else:
            recorder.done(done, result.started, result.seconds)

    def waits_for(plan: Plan) -> tuple[str, ...]:
        reference = missing_reference(plan, missing)
        return () if reference is None else (reference,)

    if missing:
        names, target = names_of(plans, frozenset(sweep.asked)), "qsweep.sweep.trial:run"
        run_queue(
            missing, names, target, sweep, store, launcher, on_done=record, waits_for=waits_for
        )
