"""What a trial needs and makes, as keys: decided before any model is loaded.

Planning is what lets a sweep refuse the impossible in milliseconds, run equal trials once, and know
what is already there.
"""

from dataclasses import dataclass
from typing import Any

from qsweep.base.environment import machine_identity
from qsweep.base.keys import key_of
from qsweep.evaluate import PROTOCOL_VERSION
from qsweep.evaluate.packs.header import signed_identity
from qsweep.evaluate.served import Serving, stages
from qsweep.evaluate.until import UNTIL_VERSION
from qsweep.formats.gguf.metadata import is_completed, is_corrected
from qsweep.formats.kv_cache.types import NONE
from qsweep.models.facts import read_config
from qsweep.models.source import ModelFacts
from qsweep.quantizers.artifact import ExistingArtifact
from qsweep.quantizers.grouped import GroupedOptions
from qsweep.quantizers.importance import version as importance_version
from qsweep.quantizers.none import Unquantized
from qsweep.quantizers.protocol import ImportanceUser, Quantizer, quantizes_activations
from qsweep.sweep.config import CorpusConfig, EvalConfig, TrialConfig
from qsweep.sweep.packed import (
    packed_measurement,
)
from qsweep.sweep.setting import Setting
from qsweep.tasks.run import TaskPlan
from qsweep.tasks.task import TASKS_VERSION, Task
from qsweep.tasks.written import VERSION as WRITTEN_VERSION
from qsweep.text.conversations import VERSION as CONVERSATIONS_VERSION
from qsweep.text.windows import CONVERSATIONS, PRESETS, Preset, preset_key

_SPEED_PROTOCOL = 1


@dataclass(frozen=True)
class ServedPlan:
    """A further run of a measurement, with more than its weights as they are served."""

    serving: Serving
    identity: dict[str, Any]
    """That of the measurement, and what is served."""
    before: str
    """The key of the run that has all of this but what is served last."""

    @property
    def key(self) -> str:
        """The key of the run, among those of the measurements."""
        return key_of(self.identity)


@dataclass(frozen=True)
class MeasurementPlan:
    """One corpus by one preset on one artifact: its weights alone, and what serving adds to them."""

    corpus: CorpusConfig
    preset: str
    identity: dict[str, Any]
    reference: dict[str, Any]
    """Identity of the cached reference that divergence is measured against."""
    primary: bool
    served: tuple[ServedPlan, ...] = ()
    """The runs beside that of the weights alone, each with all that those before it have."""

    @property
    def key(self) -> str:
        """The key of the measurement of the weights alone."""
        return key_of(self.identity)

    @property
    def keys(self) -> tuple[str, ...]:
        """That, and those of the runs beside it."""
        return (self.key, *(run.key for run in self.served))


@dataclass(frozen=True)
class Plan:
    """A trial with the identity of everything it makes."""

    trial: TrialConfig
    setting: Setting
    artifact: dict[str, Any]
    measurements: tuple[MeasurementPlan, ...]
    timing: dict[str, Any] | None
    tasks: tuple[TaskPlan, ...] = ()

    @property
    def is_reference(self) -> bool:
        """Whether the trial measures the unquantized model."""
        return isinstance(self.trial.quant, Unquantized)

    @property
    def own_run(self) -> bool:
        """Whether llama.cpp's own run of the artifact is compared with the reference."""
        return self.timing is not None and self.timing["kld_native"] is not None

    @property
    def artifact_key(self) -> str:
        """The key of the artifact."""
        return key_of(self.artifact)

    @property
    def importance(self) -> dict[str, Any] | None:
        """Identity of the importance matrix of its calibration text, if it has one."""
        if "calibration" not in self.artifact:
            return None
        found = {name: self.artifact[name] for name in ("model", "calibration")}
        return found | {"version": importance_version(self.setting.facts)}

    @property
    def uses_importance(self) -> bool:
        """Whether its artifact depends on that matrix."""
        return _uses_importance(self.trial.quant)

    @property
    def key(self) -> str:
        """The key of the trial: two configurations with the same key are run once."""
        runs = [key for measurement in self.measurements for key in measurement.keys]
        parts = [self.artifact_key, runs, self.timing]
        return key_of([*parts, [task.key for task in self.tasks]] if self.tasks else parts)

    def reference(self) -> "Plan":
        """The plan that measures the unquantized model by the same protocol."""
        if self.is_reference:
            return self
        # What a cache costs is asked of those that are compared with it.
        changed = {"quant": UNQUANTIZED, "kv_cache": NONE}
        trial = TrialConfig(
            model=self.trial.model,
            quant=Unquantized(),
            calibration=self.trial.calibration,
            corpora=self.trial.corpora,
            eval=self.trial.eval,
            device=self.trial.device,
            format=self.trial.format,
            resolved={**self.trial.resolved, **changed},
            written={**self.trial.written, **changed},
        )
        return make_plan(trial, self.setting)


UNQUANTIZED = {"_target_": f"{Unquantized.__module__}.{Unquantized.__qualname__}"}


def make_plan(trial: TrialConfig, setting: Setting) -> Plan:
    """The identities of a trial's artifact, measurements and timing; pure."""
    artifact = _artifact_identity(trial, trial.quant, setting)
    reference = _artifact_identity(trial, Unquantized(), setting)
    measurements = tuple(
        _measurement_plan(trial, setting, key_of(artifact), key_of(reference), corpus, preset)
        for corpus in trial.corpora
        for preset in trial.eval.presets_for(corpus)
    )
    speed = trial.eval.speed
    native = trial.eval.kld_native and _runs_in_llama_cpp(trial.quant)
    timing = None
    if speed or native:
        timing = {
            "artifact": key_of(artifact),
            "machine": machine_identity(setting.device),
            "speed": speed,
            # llama.cpp's own run is of the primary measurement's windows
            "kld_native": next(m.key for m in measurements if m.primary) if native else None,
            "version": _SPEED_PROTOCOL,
        }
        if native and trial.kv_cache and trial.kv_cache.in_llama_cpp:
            timing["kv_cache"] = str(trial.kv_cache)
    tasks = tuple(
        TaskPlan(
            task=task,
            identity={"artifact": key_of(artifact), **protocol},
            reference={"artifact": key_of(reference), **protocol},
        )
        for task, revision in zip(setting.tasks, setting.task_revisions, strict=True)
        for protocol in [_task_protocol(task, setting) | revision]
    )
    return Plan(trial, setting, artifact, measurements, timing, tasks)


def effective_preset(evaluation: EvalConfig, name: str) -> Preset:
    """A preset of the protocol with what the configuration overrides. Raises ConfigError."""
    preset = CONVERSATIONS if name == CONVERSATIONS.name else PRESETS[name]
    return preset.override(
        context=evaluation.context, stride=evaluation.stride, max_windows=evaluation.max_windows
    )


def sample_length(trial: TrialConfig, facts: ModelFacts) -> int:
    """Tokens of one calibration sample: no more than the model reads."""
    return min(trial.calibration.max_seq_len, facts.max_length)


def all_experts(trial: TrialConfig, facts: ModelFacts) -> bool:
    """Whether statistics are gathered of every token in every expert: there are some, and it is asked."""
    return trial.calibration.all_experts and bool(facts.experts)


def _artifact_identity(trial: TrialConfig, quant: Quantizer, setting: Setting) -> dict[str, Any]:
    identity: dict[str, Any] = {
        "model": setting.model_hash,
        "method": quant.method,
        "backend": quant.backend,
        "options": quant.options(),
        "version": quant.version(),
    }
    if _is_gguf(quant) and is_completed(read_config(setting.facts.path)):
        identity["metadata"] = 1
    if _is_gguf(quant) and is_corrected(read_config(setting.facts.path)):
        identity["conversion"] = 1
    if setting.facts.kept and isinstance(quant, GroupedOptions):
        # Before there were roles, whatever fitted by its shape was quantized.
        identity["roles"] = 1
    if quant.uses_calibration and setting.calibration is not None:
        identity["calibration"] = {
            **setting.calibration.identity,
            "num_samples": trial.calibration.num_samples,
            "max_seq_len": sample_length(trial, setting.facts),
            "seed": trial.calibration.seed,
        }
        if all_experts(trial, setting.facts):
            identity["calibration"]["all_experts"] = True
        if _uses_importance(quant):
            identity["importance"] = importance_version(setting.facts)
    # What was made beside a pack knows less of the model than what was made beside that itself.
    return identity if setting.pack is None else signed_identity(identity, setting.pack)


def _is_gguf(quant: Quantizer) -> bool:
    holder = getattr(quant, "holder", None)
    return "gguf" in (quant.method, quant.options().get("export"), holder)


def _runs_in_llama_cpp(quant: Quantizer) -> bool:
    stated = isinstance(quant, ExistingArtifact) and quant.provenance.method == "gguf"
    return stated or _is_gguf(quant)


def _uses_importance(quant: Quantizer) -> bool:
    return isinstance(quant, ImportanceUser) and quant.uses_importance


def _task_protocol(task: Task, setting: Setting) -> dict[str, Any]:
    return {
        **task.identity(),
        "dtype": setting.dtype,
        "device_type": setting.device.partition(":")[0],
        "version": TASKS_VERSION,
    }


def _measurement_plan(
    trial: TrialConfig,
    setting: Setting,
    artifact: str,
    reference: str,
    corpus: CorpusConfig,
    preset: str,
) -> MeasurementPlan:
    protocol = {
        "preset": preset_key(preset),
        "dtype": setting.dtype,
        "device_type": setting.device.partition(":")[0],
        "protocol": PROTOCOL_VERSION,
    }
    if setting.pack is None:
        protocol["text"] = setting.texts[corpus.name].fingerprint
        protocol["overrides"] = effective_preset(trial.eval, preset).overrides
        if corpus.assistant_only:
            protocol["conversations"] = [CONVERSATIONS_VERSION, setting.template]
        if corpus.new_tokens is not None:
            stated = [setting.generation] if setting.generation else []
            protocol["written"] = [WRITTEN_VERSION, corpus.new_tokens, *stated]
        identity = {"artifact": artifact, **protocol, **_comparison(trial)}
        base = {"artifact": reference, **protocol}
    else:
        # Text and windows are the pack's, and so is what the reference was run in; dtype and
        # device of the measurement are this machine's.
        packed = packed_measurement(setting.pack, corpus.name, preset)
        protocol |= {name: packed.reference[name] for name in ("text", "overrides")}
        own = {"artifact": artifact, **protocol, **_comparison(trial)}
        of_reference = isinstance(trial.quant, Unquantized)
        identity = signed_identity(packed.measurement if of_reference else own, setting.pack)
        base = signed_identity(packed.reference, setting.pack)
    primary = corpus.name == trial.primary and preset == trial.eval.presets_for(corpus)[0]
    served = _served_plans(trial, setting, identity)
    return MeasurementPlan(corpus, preset, identity, base, primary, served)


def _served_plans(
    trial: TrialConfig, setting: Setting, identity: dict[str, Any]
) -> tuple[ServedPlan, ...]:
    if setting.pack is not None and isinstance(trial.quant, Unquantized):
        return ()  # of a pack's model nothing can be run
    plans: list[ServedPlan] = []
    before = key_of(identity)
    cache = str(trial.kv_cache) if trial.kv_cache else None
    for serving in stages(activations=quantizes_activations(trial.quant), kv_cache=cache):
        plans.append(ServedPlan(serving, {**identity, "served": serving.identity}, before))
        before = plans[-1].key
    return tuple(plans)


def _comparison(trial: TrialConfig) -> dict[str, Any]:
    # What a measurement holds beside perplexity; the noise floor is the reference's alone, which
    # is measured on all windows, however many others want.
    divergence, until = trial.eval.divergence, trial.eval.until
    is_reference = isinstance(trial.quant, Unquantized)
    floor = is_reference and divergence and trial.eval.noise_floor
    found: dict[str, Any] = {"divergence": divergence, "noise_floor": floor}
    if until is not None and not is_reference:
        found["until"] = {"rule": until, "version": UNTIL_VERSION}
    return found
