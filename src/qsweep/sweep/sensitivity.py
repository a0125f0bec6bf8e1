"""Sensitivities of a sweep's artifacts: what each layer of each would cost by itself, in the store.

Those of artifacts that share model and calibration text are made by one job, in one walk through the
model. Each artifact's go into the store under a key of its own, whoever they were made with.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, IncompatibleTrial, QsweepError
from qsweep.base.files import read_json, write_json
from qsweep.base.keys import key_of
from qsweep.base.progress import Progress
from qsweep.base.store import Entry, Store
from qsweep.launch import Job, open_display
from qsweep.quantizers.sensitivity.version import LENGTH, SAMPLES, VERSION
from qsweep.sweep.artifacts import plan_here, source_model, stored_artifact, tokenizer_of
from qsweep.sweep.config import own_config
from qsweep.sweep.jobs import device_of
from qsweep.sweep.plan import Plan
from qsweep.sweep.setting import found_calibration
from qsweep.text.calibrated import CalibrationText

if TYPE_CHECKING:
    from qsweep.sweep.session import Session

FILE = "sensitivities.json"


@dataclass(frozen=True)
class Wanted:
    """An artifact whose sensitivities are wanted, and the text that they are of."""

    plan: Plan
    text: CalibrationText

    @property
    def calibration(self) -> dict[str, Any]:
        """What the text's tokens depend on."""
        plan = self.plan
        return {
            **self.text.identity,
            "num_samples": SAMPLES,
            "max_seq_len": min(LENGTH, plan.setting.facts.max_length),
            "seed": plan.trial.calibration.seed,
        }

    @cached_property
    def identity(self) -> dict[str, Any]:
        """That of the entry in the store."""
        return {
            "sensitivities": self.plan.artifact_key,
            "model": self.plan.setting.model_hash,
            "calibration": self.calibration,
            "version": VERSION,
        }

    @property
    def walk(self) -> str:
        """The same for those that one walk can make."""
        setting, trial = self.plan.setting, self.plan.trial
        parts = [setting.model_hash, self.calibration, setting.device, trial.device]
        return key_of([*parts, str(setting.facts.path), trial.model.trust_remote_code])


def sensitivities(session: "Session", plans: Sequence[Plan]) -> dict[str, Mapping[str, float]]:
    """The KL divergence that each layer of each artifact would cause by itself, predicted.

    Those that the store lacks are made now, by the sweep's launcher.

    Args:
        session: The sweep under way.
        plans: Trials whose artifacts are in the store.

    Returns:
        By artifact's key, and by layer as the checkpoint calls it: nats per token; see
        :func:`~qsweep.quantizers.sensitivity.predict.sensitivities`.

    Raises:
        QsweepError: An artifact that is needed is not in the store, or the job failed; the line says
            why.
        IncompatibleTrial: The model, or an artifact, is of a kind of which there are none.
    """
    store = session.store
    wanted = {plan.artifact_key: _wanted(plan, store) for plan in plans}
    missing = [one for one in wanted.values() if _find(one, store) is None]
    for one in missing:
        _require_possible(one.plan, store)
    groups: dict[str, list[Wanted]] = {}
    for one in missing:
        groups.setdefault(one.walk, []).append(one)
    if groups:
        _run(session, [_job(session, group) for group in groups.values()])
    found: dict[str, Mapping[str, float]] = {}
    for key, one in wanted.items():
        entry = _find(one, store)
        if entry is None:
            raise QsweepError(
                f"{store.root}: the sensitivities of artifacts/{key} are gone or damaged; run it again"
            )
        found[key] = read_json(entry.path / FILE)
    return found


def run(payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The job's target: sensitivities of the artifacts of ``configs`` that the store has none of."""
    store = Store.at(payload["store"])
    plans = [plan_here(config, payload["model"], store) for config in payload["configs"]]
    wanted = {key_of(one.identity): one for one in (_wanted(plan, store) for plan in plans)}

    def make(folders: Mapping[str, Path]) -> Mapping[str, dict[str, Any]]:
        return _make({key: wanted[key] for key in folders}, folders, store, progress)

    store.build_all("sensitivities", [one.identity for one in wanted.values()], make)
    return {}


def _make(
    wanted: Mapping[str, Wanted], folders: Mapping[str, Path], store: Store, progress: Progress
) -> dict[str, dict[str, Any]]:
    from qsweep.quantizers.sensitivity.predict import sensitivities as predict

    started = time.perf_counter()
    artifacts = {
        key: stored_artifact(one.plan, store.require("artifacts", one.plan.artifact_key))
        for key, one in wanted.items()
    }
    first = next(iter(wanted.values()))
    sampling, setting = first.calibration, first.plan.setting
    tokens = first.text.samples(
        tokenizer_of(first.plan),
        sampling["num_samples"],
        sampling["max_seq_len"],
        sampling["seed"],
        setting.facts.model_type,
    )
    found = predict(source_model(first.plan), tokens, artifacts, progress, seed=sampling["seed"])
    spent = round(time.perf_counter() - started, 3)
    for key, folder in folders.items():
        write_json(folder / FILE, found[key])
    return {key: {"layers": len(found[key]), "shared_s": spent} for key in folders}


def _wanted(plan: Plan, store: Store) -> Wanted:
    # A quantizer that reads no text has none in its setting.
    model = plan.setting.facts.path
    return Wanted(plan, plan.setting.calibration or found_calibration(plan.trial, model, store))


def _find(one: Wanted, store: Store) -> Entry | None:
    return store.find("sensitivities", key_of(one.identity), full=True)


def _require_possible(plan: Plan, store: Store) -> None:
    if plan.setting.pack is not None:
        raise IncompatibleTrial(
            f"{plan.trial.model.name}: a reference pack holds no layers, which sensitivities are of; "
            "give the model itself"
        )
    if plan.is_reference:
        raise QsweepError(f"{plan.trial.model.name}: what is not quantized has no sensitivities")
    entry = store.look("artifacts", plan.artifact_key)
    if entry is None:
        raise ArtifactCorrupt(
            f"{store.path('artifacts', plan.artifact_key)}: is gone or damaged; run its trial again"
        )
    artifact = stored_artifact(plan, entry)
    if artifact.unexplained:
        raise IncompatibleTrial(
            f"{artifact.files}: {artifact.unexplained}, so that its layers cannot be compared with the "
            "model's"
        )


def _job(session: "Session", group: Sequence[Wanted]) -> Job:
    plans = [one.plan for one in group]
    first, count = plans[0], len(plans)
    timeout_s = session.sweep.config.timeout_s
    id = "sensitivities-" + key_of(sorted(key_of(one.identity) for one in group))
    several = f"{count} configurations" if count > 1 else "one configuration"
    return Job(
        id=id,
        name=f"{first.trial.model.name} sensitivities of {several}",
        target="qsweep.sweep.sensitivity:run",
        payload={
            "configs": [own_config(plan.trial) for plan in plans],
            "store": session.store.address,
            "model": session.store.portable(first.setting.facts.path),
        },
        log=session.sweep.log_of(id),
        timeout_s=None if timeout_s is None else timeout_s * count,
        device=device_of(first),
        counts=False,
    )


def _run(session: "Session", jobs: Iterable[Job]) -> None:
    jobs = list(jobs)
    session.launcher.prepare()
    with open_display(0, session.sweep.name) as display:
        results = session.launcher.run(jobs, on_event=display.event)
    for job in jobs:
        result = results[job.id]
        if result.status == "finished":
            continue
        kind = IncompatibleTrial if result.status == "skipped" else QsweepError
        raise kind(f"{job.name}: {result.reason}")
