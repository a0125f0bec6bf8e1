"""Making artifacts: what a trial's job and a pass's do alike before anything is measured."""

import contextlib
import gc
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from qsweep.base.errors import QsweepError, TrialFailed, in_one_line
from qsweep.base.memory import peak_memory, reset_peak_memory
from qsweep.base.progress import Progress
from qsweep.base.scratch import ScratchFolder
from qsweep.base.store import Entry, Store
from qsweep.formats.artifact import Artifact, from_content, to_content
from qsweep.launch import slot_device
from qsweep.models.hub import resolve
from qsweep.models.source import SourceModel
from qsweep.quantizers.artifact import ExistingArtifact
from qsweep.quantizers.importance import load as load_importance
from qsweep.quantizers.importance import measure_importance
from qsweep.quantizers.importance import save as save_importance
from qsweep.quantizers.protocol import PassResult
from qsweep.sweep.config import trial_config
from qsweep.sweep.plan import Plan, all_experts, make_plan, sample_length
from qsweep.sweep.setting import find_setting
from qsweep.text.calibration import CalibrationTokens


def plan_here(config: dict[str, Any], model: str, store: Store, key: str | None = None) -> Plan:
    """The plan of a resolved configuration, inside a job's process and for its device.

    Args:
        config: The configuration.
        model: Where the model was as the sweep was planned. On a machine that has it elsewhere it
            is looked for anew.
        store: This machine's.
        key: What the plan's key was there.

    Raises:
        TrialFailed: planned here it has another key: its results would be those of another trial.
    """
    trial = trial_config(config)
    # The launcher's slot says which device is this process's own.
    own = slot_device()
    device = "cuda:0" if own == "cuda" else own
    place = store.located(model)
    if not place.exists():
        place = resolve(trial.model)
    plan = make_plan(trial, find_setting(trial, place, store, device))
    if key is not None and plan.key != key:
        timed = " (of eval.speed and eval.kld_native also the hardware)" if plan.timing else ""
        raise TrialFailed(
            f"on {platform.node()} this is another trial than where the sweep was planned: the model "
            f"in {place}, a text or the device differs{timed}; copy the same files there"
        )
    return plan


def obtain_artifact(plan: Plan, store: Store, progress: Progress) -> Artifact:
    """The trial's artifact, quantized now unless the store holds it intact."""
    if plan.is_reference:
        return plan.setting.reference_artifact()

    progress("quantize", None)
    require_unchanged(plan, store)
    entry, _ = store.build("artifacts", plan.artifact, partial(_make, plan, store, progress))
    release_memory()
    return stored_artifact(plan, entry)


def stored_artifact(plan: Plan, entry: Entry) -> Artifact:
    """What the store holds as a trial's artifact; one that existed stays where it was."""
    found = from_content(entry.path, entry.content)
    quant = plan.trial.quant
    return replace(found, origin=quant.place) if isinstance(quant, ExistingArtifact) else found


def require_unchanged(plan: Plan, store: Store) -> None:
    """Refuse to go on with an artifact of another maker that somebody writes. Raises TrialFailed."""
    if isinstance(plan.trial.quant, ExistingArtifact):
        plan.trial.quant.require_unchanged(store)


def _make(plan: Plan, store: Store, progress: Progress, out: Path) -> dict[str, Any]:
    return made(plan.setting.device, partial(_quantize, plan, store, progress, out))[0]


def _quantize(
    plan: Plan, store: Store, progress: Progress, out: Path
) -> tuple[list[Artifact], CalibrationTokens | None]:
    tokens, shared = calibration_tokens(plan), None
    if tokens is not None and plan.uses_importance:
        shared = obtain_importance(plan, tokens, store, progress)
        tokens = replace(tokens, importance=load_importance(shared.path))
    started = time.perf_counter()
    artifact = plan.trial.quant.quantize(source_model(plan), tokens, out, progress)
    if shared is not None:
        spent = {"quantize_s": time.perf_counter() - started, **shared.content}
        artifact = replace(artifact, details=artifact.details | spent)
    return [artifact], tokens


def obtain_importance(
    plan: Plan, tokens: CalibrationTokens, store: Store, progress: Progress
) -> Entry:
    """The importance matrix of the trial's calibration text, measured now if the store lacks it."""
    measure = partial(measure_importance, source_model(plan), tokens, progress)
    return keep_importance(plan, store, measure)


def keep_importance(plan: Plan, store: Store, measure: Callable[[], PassResult]) -> Entry:
    """What a pass finds of the trial's calibration text, put into the store unless it is there.

    ``shared_s`` is what the pass took for all that share it.
    """
    assert plan.importance is not None
    return store.build("importances", plan.importance, partial(_keep_importance, measure))[0]


def _keep_importance(measure: Callable[[], PassResult], out: Path) -> dict[str, Any]:
    result = measure()
    save_importance(result.importance or {}, out)
    return {"shared_s": round(result.shared_s, 3), **result.coverage}


def made(
    device: str, quantize: Callable[[], tuple[list[Artifact], CalibrationTokens | None]]
) -> list[dict[str, Any]]:
    """Quantize, and say what manifests tell of each artifact: itself, time, peak memory.

    ``quantize`` gives the artifacts, and the text that they were calibrated on.

    ``quantize_s`` is what one artifact took; where a pass has parts that are shared by all, those
    are in ``shared_s`` instead. ``calibration_tokens`` is what was asked for, and how many different
    tokens of the text that came to.
    """
    started = time.perf_counter()
    reset_peak_memory(device)
    # Some libraries write logs into whatever folder they are called in.
    with ScratchFolder() as scratch, contextlib.chdir(scratch):
        artifacts, calibration = quantize()
    spent = {"quantize_s": time.perf_counter() - started}
    memory = peak_memory(device)
    seen: dict[str, Any] = {}
    if calibration is not None and calibration.distinct is not None:
        asked = sum(map(len, calibration.samples))
        seen = {"calibration_tokens": {"asked": asked, "distinct": calibration.distinct}}
    own = ("quantize_s", "shared_s")
    times = [{key: a.details[key] for key in own if key in a.details} for a in artifacts]
    return [
        {**to_content(artifact), **spent, **timing, **seen, **memory}
        for artifact, timing in zip(artifacts, times, strict=True)
    ]


def source_model(plan: Plan) -> SourceModel:
    """What a quantizer gets of the model."""
    return SourceModel(
        plan.setting.facts,
        plan.setting.device,
        plan.trial.model.trust_remote_code,
        own_run=plan.own_run,
        stream=plan.trial.model.stream,
    )


def calibration_tokens(plan: Plan) -> CalibrationTokens | None:
    """The samples that the trial's quantizer may see; None where it needs none."""
    if plan.setting.calibration is None:
        return None
    sampling = plan.trial.calibration
    samples = plan.setting.calibration.samples(
        tokenizer_of(plan),
        sampling.num_samples,
        sample_length(plan.trial, plan.setting.facts),
        sampling.seed,
        plan.setting.facts.model_type,
    )
    return replace(samples, all_experts=all_experts(plan.trial, plan.setting.facts))


def tokenizer_of(plan: Plan) -> Any:
    """The reference model's tokenizer, which serves every format.

    Raises:
        QsweepError: its library cannot read it; the line names the file.
    """
    from transformers import AutoTokenizer

    path, trusted = plan.setting.facts.path, plan.trial.model.trust_remote_code
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trusted)
    except Exception as error:  # of the tokenizers library, whose errors have no kind
        file = path / "tokenizer.json"
        place = file if file.exists() else path
        raise QsweepError(
            f"{place}: no tokenizer can be made of it ({in_one_line(error)})"
        ) from error


def release_memory() -> None:
    """Let go of what a quantizing library or a measurement leaves behind."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
