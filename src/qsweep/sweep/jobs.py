"""From plans to jobs that any launcher can run. Pure: paths and keys in, jobs out."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from qsweep.launch import Job
from qsweep.results.labels import with_distinct_names
from qsweep.sweep.config import own_config
from qsweep.sweep.plan import Plan
from qsweep.sweep.recording import unfinished_record


def plan_job(
    plan: Plan,
    name: str,
    target: str,
    needs: tuple[str, ...],
    store: Path,
    log: Path,
    timeout_s: float | None,
) -> Job:
    """The job that brings into the store what a plan names, or of that what its target makes."""
    return Job(
        id=plan.key,
        name=name,
        target=target,
        payload={
            "key": plan.key,
            "config": own_config(plan.trial),
            "store": str(store),
            "model": str(plan.setting.facts.path),
        },
        log=log,
        timeout_s=timeout_s,
        needs=needs,
        device=device_of(plan),
    )


def device_of(plan: Plan) -> str:
    """What a plan's job runs on."""
    # A trial that may use any GPU takes the one of its slot; one spread by device_map takes all.
    if plan.setting.device == "cpu":
        return "cpu"
    if plan.trial.model.device_map:
        return "all"
    # Planned for a GPU, it is another trial on a machine that has none.
    return "cuda" if plan.trial.device == "auto" else plan.trial.device


def missing_reference(plan: Plan, missing: Mapping[str, Plan]) -> str | None:
    """The trial still to run that measures what a trial is compared with; its key."""
    if plan.is_reference:
        return None
    reference = plan.reference()
    if reference.key in missing:
        return reference.key
    # A baseline is measured on less than the trials that it is for, and so is its reference.
    wanted = {step.key for step in reference.measurements}
    for key, other in missing.items():
        if other.is_reference and wanted <= {step.key for step in other.measurements}:
            return key
    return None


def names_of(plans: Mapping[str, Plan], asked: Collection[str]) -> dict[str, str]:
    """What trials are called while they run, by key: as in the table."""
    outlines = [
        replace(
            unfinished_record(plan.trial, key, "planned", "", plan.setting.model_hash),
            implied=key not in asked,
        )
        for key, plan in plans.items()
    ]
    return {record.key: record.name for record in with_distinct_names(outlines)}
