"""One trial: reference, quantize, measure. Runs in a process of its own and leaves all in the store.

Nothing is returned: what a trial made is read from the store by :mod:`qsweep.sweep.recording`, so that a
resumed sweep and a fresh one tell the same story.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import IncompatibleTrial
from qsweep.base.keys import key_of
from qsweep.base.locks import device_lock
from qsweep.base.memory import peak_memory, reset_peak_memory
from qsweep.base.progress import Progress
from qsweep.base.store import Entry, Store
from qsweep.formats.artifact import Artifact
from qsweep.models.room import streams
from qsweep.quantizers.conversion.artifact import require_runnable
from qsweep.results.columns.views import check_figures
from qsweep.sweep.artifacts import (
    obtain_artifact,
    plan_here,
    release_memory,
    require_unchanged,
    tokenizer_of,
)
from qsweep.sweep.on_policy import has_written, keep_written, written_windows
from qsweep.sweep.packed import (
    import_pack,
    packed_measurement,
    packed_windows,
    require_same_tokenizer,
)
from qsweep.sweep.plan import MeasurementPlan, Plan, ServedPlan, effective_preset
from qsweep.sweep.tensors import keep_tensors
from qsweep.tasks.run import lacks_reference, missing, run_tasks
from qsweep.text.vocabulary import require_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from qsweep.evaluate import Reference, WindowScores
    from qsweep.tasks.model import LanguageModel
    from qsweep.text.windows import Windows


def run(payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The job's target: ``payload`` holds the resolved configuration, the store and the model."""
    store = Store.at(payload["store"])
    plan = plan_here(payload["config"], payload["model"], store, payload["key"])
    run_trial(plan, store, progress)
    return {}


def run_trial(plan: Plan, store: Store, progress: Progress) -> None:
    """Bring everything that the plan names into the store; what is there already stays."""
    artifact = obtain_artifact(plan, store, progress)
    if (pack := plan.setting.pack) is not None:
        import_pack(pack, store, full=True)
        require_same_tokenizer(pack, artifact)
    if artifact.unexplained:
        if plan.trial.kv_cache:
            raise IncompatibleTrial(
                f"kv_cache={plan.trial.kv_cache}: {artifact.unexplained}, so no dense model can be "
                "made of it, whose keys and values could be quantized; leave kv_cache out"
            )
        # It was made for another trial, perhaps, which asked for that.
        require_runnable(
            plan.trial.model.name,
            artifact.unexplained,
            artifact.details["llama_cpp"],
            own_run=plan.own_run,
        )
        time_artifact(plan, artifact, store, progress)
        return
    keep_tensors(plan, artifact, store, progress)
    measured = all(_has_all(step, store) for step in plan.measurements)
    if not measured or missing(plan.tasks, store) or lacks_reference(plan.tasks, store):
        Measuring(plan, artifact, store, progress).run()
    if plan.timing is not None:
        time_artifact(plan, artifact, store, progress)


@dataclass
class Measuring:
    """Measures one artifact: every corpus by every preset and every task, on one dense model.

    What the store holds already is left out; the model is loaded when something is missing.
    """

    plan: Plan
    artifact: Artifact
    store: Store
    progress: Progress
    _model: Any = None

    def run(self) -> None:
        """Bring every measurement and every task's result into the store."""
        plan, store = self.plan, self.store
        reference = plan.reference()
        if not plan.is_reference:
            pairs = zip(plan.measurements, reference.measurements, strict=True)
            wanted = [base for step, base in pairs if not _has_all(step, store)]
            _ensure_references(reference, wanted, store, self.progress)
        for step, base in zip(plan.measurements, reference.measurements, strict=True):
            if store.find("measurements", step.key, full=True) is None:
                self._load()
                store.build("measurements", step.identity, partial(self._measure, step, base))
            for run in step.served:
                if store.find("measurements", run.key, full=True) is None:
                    self._load()
                    make = partial(self._measure_served, step, base, run)
                    store.build("measurements", run.identity, make)
        run_tasks(plan.tasks, store, self._language_model, self.progress)
        require_unchanged(plan, store)
        self._model = None
        release_memory()

    def _load(self) -> "PreTrainedModel":
        if self._model is None:
            self.progress("load", None)
            self._model = load(self.plan, self.artifact)
        return self._model

    def _language_model(self) -> "LanguageModel":
        return language_model(self.plan, self._load())

    def _measure(self, step: MeasurementPlan, base: MeasurementPlan, out: Path) -> dict[str, Any]:
        from qsweep.evaluate import compare, measure, read_measurement
        from qsweep.evaluate.until import as_read_by, measure_until, parse_until

        plan, model = self.plan, self._load()
        started = time.perf_counter()
        reset_peak_memory(plan.setting.device)
        if plan.is_reference and step.corpus.new_tokens is not None:
            keep_written(plan, step, self.store, self._language_model, self.progress)
        windows = windows_of(plan, step, self.store)
        report = partial(_report_as, f"measure {step.corpus.name}", self.progress)
        if plan.is_reference:
            result = self._measure_reference(step, windows, report)
            if left_out := getattr(model, "left_out", None):
                result.facts["left_out"] = left_out
        else:
            reference = find_reference(plan, step, self.store)
            held = read_measurement(self.store.require("measurements", base.key).path)
            if (until := plan.trial.eval.until) is not None:
                rule = parse_until(until)
                result = measure_until(model, windows, reference, held, rule, report)
            else:
                result = measure(model, windows, reference, report)
            result.metrics.update(compare(result, as_read_by(result, held, windows)))
        if (pack := plan.setting.pack) is not None:
            result.facts["reference"] = pack.words
        check_figures("measurement", result.metrics)
        return self._kept(result, out, started)

    def _measure_served(
        self, step: MeasurementPlan, base: MeasurementPlan, run: ServedPlan, out: Path
    ) -> dict[str, Any]:
        """The same model once more, with more than its weights as it is served."""
        from qsweep.evaluate import compare, compare_kld, read_measurement
        from qsweep.evaluate.as_served import measure_as_served
        from qsweep.evaluate.until import as_read_by, chosen_windows

        plan = self.plan
        started = time.perf_counter()
        reset_peak_memory(plan.setting.device)
        label = f"measure {step.corpus.name} with {run.serving.name}"
        # The run before is mostly that of the weights.
        kept = {
            key: read_measurement(self.store.require("measurements", key).path)
            for key in {step.key, run.before, base.key}
        }
        weights, before, held = kept[step.key], kept[run.before], kept[base.key]
        windows = windows_of(plan, step, self.store)
        reference = find_reference(plan, step, self.store)
        if (chosen := chosen_windows(weights)) is not None:
            held = as_read_by(weights, held, windows)
            reference = None if reference is None else reference.select(windows, chosen.numbers)
            windows = windows.select(chosen.numbers)
        result = measure_as_served(
            self._load(),
            windows,
            run.serving,
            self.artifact,
            reference,
            partial(_report_as, label, self.progress),
        )
        if "refused" not in result.facts:
            result = result if chosen is None else chosen.mark(result)
            result.metrics |= compare(result, held) | compare_kld(result, before)
        check_figures("measurement", run.serving.figures(result.metrics))
        return self._kept(result, out, started)

    def _kept(self, result: "WindowScores", out: Path, started: float) -> dict[str, Any]:
        from qsweep.evaluate import save_measurement

        require_unchanged(self.plan, self.store)
        save_measurement(result, out)
        return {
            "metrics": result.metrics,
            "facts": result.facts,
            "evaluate_s": time.perf_counter() - started,
            **peak_memory(self.plan.setting.device),
        }

    def _measure_reference(
        self, step: MeasurementPlan, windows: "Windows", report: Progress
    ) -> "WindowScores":
        """The reference itself; its states become the cache that others are compared with."""
        from qsweep.evaluate import measure, noise_floor, reference_measurement

        plan, model = self.plan, self._load()
        # The unquantized model's own figures, by definition; its divergence is measured below.
        itself = {"ppl_ratio": 1.0, "ppl_ratio_low": 1.0, "ppl_ratio_high": 1.0, "quality": 1.0}
        if not plan.trial.eval.divergence:
            result = measure(model, windows, progress=report)
            result.metrics |= itself
            return result
        keep = partial(_keep_reference, model, windows, report)
        entry, _ = self.store.build("references", step.reference, keep)
        result = reference_measurement(entry.path, windows)
        result.metrics |= itself
        if plan.trial.eval.noise_floor:
            reference = _open_reference(plan, entry)
            result.metrics |= noise_floor(model, windows, reference, self._load_wide)
        return result

    def _load_wide(self) -> "PreTrainedModel":
        return load(self.plan, self.plan.setting.reference_artifact(), "float32")


def _has_all(step: MeasurementPlan, store: Store) -> bool:
    return all(store.find("measurements", key, full=True) for key in step.keys)


def _report_as(label: str, progress: Progress, _: str, done: float | None = None) -> None:
    progress(label, done)


def _keep_reference(model: Any, windows: "Windows", report: Progress, out: Path) -> dict[str, Any]:
    from qsweep.evaluate import build_reference

    build_reference(model, windows, out, report)
    return {}


def load(plan: Plan, artifact: Artifact, dtype: str | None = None) -> "PreTrainedModel":
    """The artifact as a dense model on the trial's device, in the trial's dtype by default."""
    import torch

    from qsweep.formats.dense import load_dense
    from qsweep.models.layer_list import CannotStream

    model, setting = plan.trial.model, plan.setting
    kind: torch.dtype = getattr(torch, dtype or setting.dtype)
    make = partial(
        load_dense,
        artifact,
        setting.facts.path,
        dtype=kind,
        device=setting.device,
        # A pack holds no code, and its configuration must not lead to any.
        trust_remote_code=model.trust_remote_code and setting.pack is None,
        device_map=model.device_map,
    )
    whole = kind.itemsize * setting.facts.parameters
    if model.device_map is None and streams(model.stream, whole, setting.device):
        try:
            return make(stream=True)
        except CannotStream:
            if model.stream is True:
                raise
    return make()


def language_model(plan: Plan, model: "PreTrainedModel") -> "LanguageModel":
    """The dense model as tasks see it."""
    from qsweep.models.generation_settings import generate_as_stated
    from qsweep.tasks.model import LanguageModel

    generate_as_stated(model, plan.setting.facts.path)
    size = plan.trial.eval.batch_size
    return LanguageModel(
        model,
        tokenizer_of(plan),
        plan.setting.facts.max_length,
        None if size == "auto" else size,
    )


def find_reference(plan: Plan, step: MeasurementPlan, store: Store) -> "Reference | None":
    """The cached reference of a measurement; None if the trial measures no divergence.

    Raises:
        ArtifactCorrupt: It is not in the store, or damaged.
    """
    if not plan.trial.eval.divergence:
        return None
    return _open_reference(plan, store.require("references", key_of(step.reference)))


def _open_reference(plan: Plan, entry: Entry) -> "Reference":
    import torch

    from qsweep.evaluate import open_reference

    setting = plan.setting
    return open_reference(
        entry.path,
        setting.facts.path,
        setting.device,
        getattr(torch, setting.dtype if setting.pack is None else setting.pack.header.dtype),
        # A pack holds no code, and its configuration must not lead to any.
        trust_remote_code=plan.trial.model.trust_remote_code and setting.pack is None,
    )


def time_artifact(plan: Plan, artifact: Artifact, store: Store, progress: Progress) -> None:
    """Speed on the serving kernels, alone on the device and never together with quality."""
    assert plan.timing is not None
    store.build("timings", plan.timing, partial(_time, plan, artifact, store, progress))


def _time(
    plan: Plan, artifact: Artifact, store: Store, progress: Progress, _: Path
) -> dict[str, Any]:
    from qsweep.evaluate.speed import can_time, kld_native, measure_speed

    timing, setting = plan.timing or {}, plan.setting
    source, trusted = setting.facts.path, plan.trial.model.trust_remote_code
    figures: dict[str, Any] = {}
    with device_lock(setting.device):
        if timing["speed"] and can_time(artifact):
            figures |= measure_speed(
                artifact, source, setting.device, progress, trust_remote_code=trusted
            )
    if timing["kld_native"]:
        primary = next(m for m in plan.measurements if m.primary)
        figures |= kld_native(
            artifact,
            source,
            windows_of(plan, primary, store),
            progress,
            device=setting.device,
            kv_cache=plan.trial.kv_cache.in_llama_cpp if plan.trial.kv_cache else None,
            trust_remote_code=trusted,
        )
    check_figures("speed", figures)
    return figures


def windows_of(plan: Plan, step: MeasurementPlan, store: Store) -> "Windows":
    """The token windows of one measurement, by the reference model's own tokenizer.

    Raises:
        ArtifactCorrupt: They are what the reference wrote, and that is not in the store.
    """
    from qsweep.text.conversations import conversation_windows
    from qsweep.text.windows import make_windows

    if (pack := plan.setting.pack) is not None:
        one = packed_measurement(pack, step.corpus.name, step.preset)
        return packed_windows(pack, plan.setting.facts.path, one)
    if step.corpus.new_tokens is not None:
        return written_windows(plan, step, store)
    tokenizer, facts = tokenizer_of(plan), plan.setting.facts
    cut = conversation_windows if step.corpus.assistant_only else make_windows
    windows = cut(
        plan.setting.texts[step.corpus.name].documents(),
        tokenizer,
        effective_preset(plan.trial.eval, step.preset),
        facts.max_length,
        facts.model_type,
    )
    require_rows([int(windows.ids.max())], tokenizer, facts.vocab_size)
    return windows


def _ensure_references(
    plan: Plan, steps: Sequence[MeasurementPlan], store: Store, progress: Progress
) -> None:
    """Make what the trial's figures are compared with, where it is absent or not what it was.

    Normally the reference trial ran before.
    """
    whole = True
    for step in steps:
        held = store.find("measurements", step.key, full=True)
        cached = not plan.trial.eval.divergence or store.find(
            "references", key_of(step.reference), full=True
        )
        if not (held and cached and has_written(plan, step, store)):
            store.remove("measurements", step.key)
            whole = False
    if not whole or any(store.find("tasks", t.key, full=True) is None for t in plan.tasks):
        Measuring(plan, plan.setting.reference_artifact(), store, progress).run()
