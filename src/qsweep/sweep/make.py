"""Artifacts without their measurements: what is chosen among before anything is measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsweep.base.progress import Progress
from qsweep.base.store import Store
from qsweep.formats.artifact import Artifact
from qsweep.launch import Job, JobResult
from qsweep.sweep.artifacts import obtain_artifact, plan_here, stored_artifact
from qsweep.sweep.jobs import names_of
from qsweep.sweep.plan import Plan
from qsweep.sweep.queue import run_queue
from qsweep.sweep.session import Session


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
    store = session.store
    missing = {
        key: plan
        for key, plan in plans.items()
        if store.find("artifacts", plan.artifact_key) is None
    }
    reasons: dict[str, str] = {}

    def note(job: Job, result: JobResult) -> None:
        if job.id in missing and result.status != "finished":
            reasons[job.id] = result.reason or "no reason recorded"

    if missing:
        names, target = names_of(missing, missing), "qsweep.sweep.make:run"
        run_queue(missing, names, target, session.sweep, store, session.launcher, on_done=note)
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
    plan = plan_here(payload["config"], payload["model"], store, payload["key"])
    obtain_artifact(plan, store, progress)
    return {}
