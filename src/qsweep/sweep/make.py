"""Artifacts without their measurements: what is chosen among before anything is measured."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from qsweep.base.progress import Progress
from qsweep.base.store import Store
from qsweep.formats.artifact import Artifact
from qsweep.launch import Job, JobResult, open_display
from qsweep.sweep.artifacts import obtain_artifact, plan_here, stored_artifact
from qsweep.sweep.jobs import device_of, names_of
from qsweep.sweep.plan import Plan
from qsweep.sweep.session import Session
from qsweep.sweep.shared_calibration import Pass, Passes


def make_artifacts(
    session: Session, plans: Mapping[str, Plan]
) -> tuple[dict[str, Artifact], dict[str, str]]:
    """Bring the artifacts of some plans into the store.

    Args:
        session: The sweep that they are made for; of trials nothing is recorded.
        plans: By key.

    Returns:
        The artifacts by the keys of their plans; and of those that could not be made, why.
    """
    store, launcher, sweep = session.store, session.launcher, session.sweep
    missing = {
        key: plan
        for key, plan in plans.items()
        if store.find("artifacts", plan.artifact_key) is None
    }
    reasons: dict[str, str] = {}
    if missing:
        launcher.prepare()
        capacity = launcher.capacity([device_of(plan) for plan in missing.values()])
        passes = Passes(missing.values(), store, capacity.jobs, capacity.memory_bytes)
        work = _Making(session, missing, passes, names_of(missing, missing))
        with open_display(len(missing), sweep.name, capacity.jobs) as display:
            launcher.run(
                work.jobs(), on_event=display.event, on_done=work.note, retry=work.try_in_parts
            )
        reasons = work.reasons
    made = {
        key: stored_artifact(plan, entry)
        for key, plan in plans.items()
        if (entry := store.find("artifacts", plan.artifact_key)) is not None
    }
    lost = "what it made is no longer in the store"
    return made, {key: reasons.get(key, lost) for key in plans if key not in made}


def run(payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The job's target: make the artifact that ``config`` describes."""
    store = Store(Path(payload["store"]))
    obtain_artifact(plan_here(payload["config"], payload["model"], store), store, progress)
    return {}


@dataclass
class _Making:
    session: Session
    missing: Mapping[str, Plan]
    passes: Passes
    names: Mapping[str, str]
    reasons: dict[str, str] = field(default_factory=dict)

    def jobs(self) -> list[Job]:
        return self._passes(self.passes) + self._single(self.missing.values())

    def note(self, job: Job, result: JobResult) -> None:
        if job.id in self.missing and result.status != "finished":
            self.reasons[job.id] = result.reason or "no reason recorded"

    def try_in_parts(self, job: Job, _: JobResult) -> list[Job]:
        concerned = [p for p in self.missing.values() if job.id in self.passes.needs(p)]
        return self._passes(self.passes.split(job.id)) + self._single(concerned)

    def _passes(self, passes: Iterable[Pass]) -> list[Job]:
        sweep = self.session.sweep
        make = partial(Pass.job, store=self.session.store, timeout_s=sweep.config.timeout_s)
        return [
            make(one, log=sweep.log_of(one.id), device=device_of(one.plans[0])) for one in passes
        ]

    def _single(self, plans: Iterable[Plan]) -> list[Job]:
        sweep = self.session.sweep
        return [
            Job(
                id=plan.key,
                name=self.names[plan.key],
                target="qsweep.sweep.make:run",
                payload={
                    "config": plan.trial.resolved,
                    "store": str(self.session.store.root),
                    "model": str(plan.setting.facts.path),
                },
                log=sweep.log_of(plan.key),
                timeout_s=sweep.config.timeout_s,
                needs=self.passes.needs(plan),
                device=device_of(plan),
            )
            for plan in plans
        ]
