"""What is checked of a sweep's models before any of its trials starts.

transformers itself says whether a configuration and weights fit each other, and importing it takes
seconds; so it is asked in a job, of a launcher that will import it for the trials anyway, once
per model, and the store remembers.
"""

from collections.abc import Iterable
from importlib.metadata import version

from qsweep.base.errors import ConfigError
from qsweep.base.files import write_bytes
from qsweep.base.keys import key_of
from qsweep.base.store import Store
from qsweep.launch import Job, JobResult, Launcher
from qsweep.models.check import VERSION
from qsweep.sweep.plan import Plan
from qsweep.sweep.recording import finished_record

_TIMEOUT_S = 600.0


def require_fitting_models(plans: Iterable[Plan], store: Store, launcher: Launcher) -> None:
    """Check the models of plans that are about to run, unless the store knows them to be sound.

    Raises:
        ConfigError: the weights of one are not those that its configuration describes. What keeps
            the check itself from ending raises nothing: the trials will tell.
    """
    jobs: dict[str, Job] = {}
    library = version("transformers")
    for plan in plans:
        facts, trusted = plan.setting.facts, plan.trial.model.trust_remote_code
        key = key_of([VERSION, plan.setting.model_hash, library, trusted])
        known = key in jobs or (store.root / "checks" / key).exists()
        if known or plan.setting.pack is not None or finished_record(plan, store) is not None:
            continue
        jobs[key] = Job(
            id=key,
            name=f"check {facts.name}",
            target="qsweep.models.check:check_model",
            payload={"model": str(facts.path), "trust_remote_code": trusted},
            log=store.root / "checks" / f"{key}.log",
            timeout_s=_TIMEOUT_S,
            device="cpu",
            counts=False,
        )

    def on_done(job: Job, result: JobResult) -> None:
        if result.status == "finished" and result.result == {"problem": None}:
            write_bytes(store.root / "checks" / job.id, b"fits")
            job.log.unlink(missing_ok=True)

    # Where it leaves its jobs to others there is nobody to tell: the trials will.
    if not jobs or getattr(launcher, "detach", False):
        return
    for result in launcher.run(list(jobs.values()), on_done=on_done).values():
        if problem := (result.result or {}).get("problem"):
            raise ConfigError(problem)
