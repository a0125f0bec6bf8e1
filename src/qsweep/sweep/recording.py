"""The record of a trial: everything known of it, read from the store."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from qsweep.base.keys import key_of
from qsweep.base.secrets import hidden
from qsweep.base.store import Entry, Store
from qsweep.evaluate.metrics import QUARTERS, by_quarter, end_positions, quality_per_gb
from qsweep.formats.artifact import Artifact
from qsweep.results.arrays import read_arrays, tells_positions
from qsweep.results.judged import told_reference_ppl
from qsweep.results.record import ArtifactFacts, Record
from qsweep.results.record_file import record_of
from qsweep.sweep.artifacts import stored_artifact
from qsweep.sweep.config import TrialConfig
from qsweep.sweep.plan import MeasurementPlan, Plan, ServedPlan
from qsweep.sweep.tensors import find_tensors, has_table
from qsweep.tasks.run import task_records


def finished_record(plan: Plan, store: Store) -> Record | None:
    """The record of a trial whose artifact and measurements are all in the store, else None.

    Of an artifact that only its runtime can run there are no measurements but that run.

    Raises:
        NotARecord: A figure was measured that the table of columns does not know.
    """
    made: dict[str, Any] = {}
    if plan.is_reference:
        artifact = plan.setting.reference_artifact()
    else:
        entry = store.look("artifacts", plan.artifact_key)
        if entry is None:
            return None
        artifact, made = stored_artifact(plan, entry), entry.content
    if artifact.unexplained and not plan.own_run:
        return None
    steps = () if artifact.unexplained else plan.measurements
    measured: list[tuple[MeasurementPlan, list[Entry]]] = []
    for step in steps:
        found = [store.find("measurements", key, full=True) for key in step.keys]
        entries = [entry for entry in found if entry is not None]
        if len(entries) < len(found):
            return None
        measured.append((step, entries))
    speed = None
    if plan.timing is not None:
        entry = store.find("timings", key_of(plan.timing))
        if entry is None:
            return None
        speed = entry.content
    tasks = None
    if plan.tasks and not artifact.unexplained:
        primary: dict[str, Any] = next(
            (entries[0].content["metrics"] for step, entries in measured if step.primary), {}
        )
        if (tasks := task_records(plan.tasks, store, primary)) is None:
            return None
    tensors = find_tensors(plan, artifact, store) if has_table(plan, artifact) else None
    runs = [entry.content for _, entries in measured for entry in entries]
    contents = [made, *runs]
    references = plan.reference().measurements
    return record_of(
        {
            **_outline(plan.trial),
            "key": plan.key,
            "model_hash": plan.setting.model_hash,
            "dequantized_from": plan.setting.facts.dequantized_from,
            "vocab_size": plan.setting.facts.vocab_size,
            "status": "finished",
            "reason": None,
            "artifact": asdict(_artifact(artifact, plan)),
            "measurements": [
                _measurement(step, entries, artifact.size.size_gb)
                | _reference_ppl(plan, entries[0].content["metrics"], reference, store)
                for (step, entries), reference in zip(measured, references, strict=False)
            ],
            "speed": speed,
            **(tasks or {}),
            "tensors": None if tensors is None else asdict(tensors),
            "quantize_s": made.get("quantize_s"),
            "shared_s": made.get("shared_s"),
            "calibration_tokens": made.get("calibration_tokens"),
            "evaluate_s": sum(content["evaluate_s"] for content in runs)
            + sum(task["seconds"] for task in (tasks or {}).get("tasks", ()))
            if measured
            else None,
            "peak_memory_gb": _largest("peak_memory_gb", contents),
            "peak_host_memory_gb": _largest("peak_host_memory_gb", contents),
            "device": plan.setting.device,
            "dtype": plan.setting.dtype,
        }
    )


def unfinished_record(
    trial: TrialConfig, key: str, status: str, reason: str, model_hash: str | None = None
) -> Record:
    """The record of a trial that failed or was skipped, with the reason in one line."""
    return Record(
        key=key,
        status=status,
        reason=hidden(" ".join(reason.split())),
        model_hash=model_hash,
        **_outline(trial),
    )


def completed(earlier: Record, now: Record) -> Record:
    """An earlier record with what it lacks: an older version wrote fewer fields."""
    empty: tuple[Any, ...] = (None, {}, ())
    new = {k: v for k, v in vars(now).items() if v not in empty and getattr(earlier, k) in empty}
    # Of how many draws it is one, the run at hand says.
    drawn = {"seeds": now.config["seeds"]} if "seeds" in now.config else {}
    new["config"] = {k: v for k, v in earlier.config.items() if k != "seeds"} | drawn
    # What is said of tensors rests on no measurement: this version's rules count.
    return replace(earlier, **new | {"tensors": now.tensors or earlier.tensors})


def now() -> str:
    """This moment in ISO 8601, UTC, to the second."""
    return timestamp(time.time())


def timestamp(seconds: float) -> str:
    """Seconds since the epoch in ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _largest(name: str, contents: Sequence[Mapping[str, Any]]) -> float | None:
    return max((c[name] for c in contents if c.get(name) is not None), default=None)


def _outline(trial: TrialConfig) -> dict[str, Any]:
    quant = trial.quant
    return {
        "name": trial.name,
        "reference": quant.method == "none",
        "model": trial.model.name,
        "method": quant.method,
        "backend": quant.backend,
        "options": quant.options(),
        "calibration": trial.calibration.blend.name if quant.uses_calibration else None,
        "fidelity": (trial.resolved.get("search") or {}).get("fidelity", "full"),
        "config": trial.written,
    }


def _artifact(artifact: Artifact, plan: Plan) -> ArtifactFacts:
    return ArtifactFacts(
        key=plan.artifact_key,
        path=str(artifact.files),
        format=artifact.format,
        runtimes=tuple(artifact.runtimes),
        size_gb=artifact.size.size_gb,
        bpw=artifact.size.bpw,
        bpw_total=artifact.size.bpw_total,
        active_gb=artifact.size.active_gb,
        details=artifact.details,
    )


def _reference_ppl(
    plan: Plan, metrics: dict[str, Any], reference: MeasurementPlan, store: Store
) -> dict[str, Any]:
    """What a measurement is told of its reference, where its own figures do not tell it."""
    if told_reference_ppl(metrics, is_reference=plan.is_reference) is not None:
        return {}
    entry = store.find("measurements", reference.key)
    return {} if entry is None else {"reference_ppl": entry.content["metrics"].get("ppl")}


def _measurement(step: MeasurementPlan, entries: Sequence[Entry], size_gb: float) -> dict[str, Any]:
    entry, *others = entries
    metrics = _metrics(entry)
    served = []
    for run, other in zip(step.served, others, strict=True):
        metrics |= run.serving.figures(_metrics(other))
        served.append(_served_run(run, other))
    verdict = metrics.pop("verdict", None)
    if "quality" in metrics:
        metrics["quality_per_gb"] = quality_per_gb(metrics["quality"], size_gb)
    return {
        "corpus": step.corpus.name,
        "preset": step.preset,
        "primary": step.primary,
        "key": step.key,
        "metrics": metrics,
        "facts": {**entry.content["facts"], "preset": step.preset},
        "verdict": verdict,
        "file": str(entry.path),
        "served": served or None,
    }


def _metrics(entry: Entry) -> dict[str, Any]:
    """A measurement's, with what earlier versions did not take of its arrays."""
    metrics, facts = dict(entry.content["metrics"]), entry.content["facts"]
    if "kld" not in metrics or f"kld_{QUARTERS[-1]}" in metrics or not tells_positions(facts):
        return metrics
    arrays = read_arrays(entry.path / "arrays.safetensors", "token_kld", "window_tokens") or {}
    if "token_kld" in arrays:
        positions = end_positions(arrays["window_tokens"], facts["context"])
        found = by_quarter(arrays["token_kld"], positions, facts["context"])
        metrics |= {f"kld_{name}": value for name, value in found}
    return metrics


def _served_run(run: ServedPlan, entry: Entry) -> dict[str, Any]:
    facts = dict(entry.content["facts"])
    return {
        "name": run.serving.name,
        "serving": run.serving.identity,
        "key": run.key,
        "refused": facts.pop("refused", None),
        "facts": facts,
        "file": str(entry.path),
    }
