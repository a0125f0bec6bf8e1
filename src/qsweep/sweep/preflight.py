"""What is checked of a sweep's models before any of its trials starts.

transformers itself says whether a configuration and weights fit each other, and importing it takes
seconds; so it is asked in a job, of a launcher that will import it for the trials anyway, once
per model, and the store remembers.
"""

from collections.abc import Iterable
from importlib.metadata import version

from qsweep.base.console import say
from qsweep.base.errors import ConfigError
from qsweep.base.files import write_bytes
from qsweep.base.keys import key_of
from qsweep.base.memory import available_bytes
from qsweep.base.store import Store
from qsweep.launch import Job, JobResult, Launcher
from qsweep.models.check import VERSION
from qsweep.models.room import streams
from qsweep.sweep.plan import Plan
from qsweep.sweep.recording import finished_record

_TIMEOUT_S = 600.0


def streaming_note(plan: Plan, free: int) -> str | None:
    """Says of a model on the CPU that it does not fit whole; None of one that does, or is spread by a map.

    Args:
        plan: A trial that measures it.
        free: Bytes of free memory.
    """
    model, facts, setting = plan.trial.model, plan.setting.facts, plan.setting
    whole = (2 if setting.dtype in ("bfloat16", "float16") else 4) * facts.parameters
    fits = not streams("auto", whole, free=free)
    elsewhere = setting.device != "cpu" or model.device_map is not None or setting.pack is not None
    if elsewhere or fits or model.stream is False:
        return None
    return (
        f"note: {facts.name} takes {whole / 1e9:.1f} GB in {setting.dtype}, where {free / 1e9:.1f} GB "
        "are free: its decoder layers are read one at a time, or, where its architecture does not "
        "let them, all, for which memory may not do (docs/streaming.md)"
    )


def require_fitting_models(plans: Iterable[Plan], store: Store, launcher: Launcher) -> None:
    """Check the models of plans that are about to run, unless the store knows them to be sound.

    Raises:
        ConfigError: the weights of one are not those that its configuration describes. What keeps
            the check itself from ending raises nothing: the trials will tell.
    """
    jobs: dict[str, Job] = {}
    notes: set[str] = set()
    free = available_bytes()
    library = version("transformers")
    with store.planning():
        for plan in plans:
            note = streaming_note(plan, free)
            trusted = plan.trial.model.trust_remote_code
            key = key_of([VERSION, plan.setting.model_hash, library, trusted])
            known = key in jobs or (store.root / "checks" / key).exists()
            unchecked = not known and plan.setting.pack is None
            untold = note is not None and note not in notes
            # Looked up last: it reads files, and of a model's many trials only the first is asked.
            if not (unchecked or untold) or finished_record(plan, store) is not None:
                continue
            if note is not None and untold:
                notes.add(note)
                say(note)
            if unchecked:
                jobs[key] = _job(plan, key, store)

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


def _job(plan: Plan, key: str, store: Store) -> Job:
    facts = plan.setting.facts
    return Job(
        id=key,
        name=f"check {facts.name}",
        target="qsweep.models.check:check_model",
        payload={
            "model": store.portable(facts.path),
            "store": store.address,
            "trust_remote_code": plan.trial.model.trust_remote_code,
        },
        log=store.root / "checks" / f"{key}.log",
        timeout_s=_TIMEOUT_S,
        device="cpu",
        counts=False,
    )
