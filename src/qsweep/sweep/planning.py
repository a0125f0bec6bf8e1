"""Which trials a sweep can run, and which it cannot and why, before any model is loaded."""

import contextlib
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qsweep.base.errors import ArtifactCorrupt, ConfigError, IncompatibleTrial, QsweepError
from qsweep.base.keys import key_of
from qsweep.base.secrets import hidden
from qsweep.base.store import Store
from qsweep.evaluate.cache_layers import counts_heads, require_cache
from qsweep.evaluate.packs.header import require_intact
from qsweep.evaluate.serving_memory import serving_config
from qsweep.models.check import check_tokenizer
from qsweep.models.config import read_config, text_config
from qsweep.models.hub import resolve
from qsweep.quantizers.artifact import ExistingArtifact
from qsweep.quantizers.none import Unquantized
from qsweep.quantizers.protocol import shows_experts_all_tokens
from qsweep.sweep.config import TrialConfig
from qsweep.sweep.found import advice
from qsweep.sweep.plan import Plan, all_experts, effective_preset, make_plan, sample_length
from qsweep.sweep.setting import Setting, find_setting
from qsweep.text.corpora import check_amount
from qsweep.text.windows import limited_to_model


@dataclass(frozen=True)
class Unplanned:
    """A trial that will not run, and why."""

    trial: TrialConfig
    status: str
    reason: str

    @property
    def key(self) -> str:
        """The key of its record."""
        return key_of([self.trial.name, self.trial.quant.options(), self.reason])


def plan_all(
    trials: Sequence[TrialConfig],
    store: Store,
    settings: "dict[str, Setting | QsweepError] | None" = None,
) -> tuple[dict[str, Plan], list[Unplanned]]:
    """Plans by key, references first, and the trials that cannot run.

    Trials that come out equal are planned once. What makes a configuration invalid for every trial
    (a path that does not exist) raises ConfigError; what fails one model or text fails its trials.
    """
    plans: dict[str, Plan] = {}
    references: dict[str, Plan] = {}
    refused: list[Unplanned] = []
    settings = {} if settings is None else settings
    for trial in trials:
        found = _setting(trial, store, settings)
        if isinstance(found, QsweepError):
            status = "skipped" if isinstance(found, IncompatibleTrial) else "failed"
            refused.append(Unplanned(trial, status, str(found)))
            continue
        try:
            _check(trial, found)
            _check_cache(trial, found)
        except (IncompatibleTrial, ArtifactCorrupt) as error:
            status = "skipped" if isinstance(error, IncompatibleTrial) else "failed"
            refused.append(Unplanned(trial, status, f"{error}{advice(trial, error)}"))
            continue
        check_requests(trial, found)
        plan = make_plan(trial, found)
        reference = plan.reference()
        references.setdefault(reference.key, reference)
        plans.setdefault(plan.key, plan)
    return references | plans, refused


def _check_cache(trial: TrialConfig, setting: Setting) -> None:
    """Refuse a cache that the model cannot have. Raises IncompatibleTrial.

    Its architecture's defaults are looked up only where the file does not tell its heads of
    attention; what neither knows is asked again of the model itself.
    """
    if not trial.kv_cache:
        return
    config = text_config(read_config(setting.facts.path))
    if not counts_heads(config):
        config = serving_config(setting.facts.path)
    with contextlib.suppress(ConfigError):
        require_cache(trial.kv_cache, config, trial.model.name)


def plan_implied(
    trials: Sequence[TrialConfig], store: Store, settings: "dict[str, Setting | QsweepError]"
) -> dict[str, Plan]:
    """Plans by key of trials that nobody asked for; what cannot run is left out.

    Their references are those of the trials that they serve.
    """
    plans = {}
    for trial in trials:
        found = _setting(trial, store, settings)
        if isinstance(found, QsweepError):
            continue
        with contextlib.suppress(IncompatibleTrial):
            _check(trial, found)
            plan = make_plan(trial, found)
            plans[plan.key] = plan
    return plans


def keys_of(
    trials: Sequence[TrialConfig],
    refused: Sequence[Unplanned],
    settings: "Mapping[str, Setting | QsweepError]",
) -> list[str]:
    """The key of each trial's record, whether the trial was planned or refused."""
    unplanned = {id(item.trial): item.key for item in refused}
    keys = []
    for trial in trials:
        key = unplanned.get(id(trial))
        if key is None:
            setting = settings[_setting_key(trial)]
            assert isinstance(setting, Setting)
            key = make_plan(trial, setting).key
        keys.append(key)
    return keys


def _check(trial: TrialConfig, setting: Setting) -> None:
    # Where nothing is quantized, a number format says nothing.
    quant = trial.quant
    takes_any = hasattr(quant, "format") or isinstance(quant, (Unquantized, ExistingArtifact))
    if not takes_any and trial.format.name != "int":
        raise IncompatibleTrial(
            f"{quant.method} ({quant.backend}) knows no number formats; format={trial.format.name} "
            "goes with rtn, gptq, awq and gguf"
        )
    quant.check(setting.facts)
    require_all_experts(trial, setting)


def require_all_experts(trial: TrialConfig, setting: Setting) -> None:
    """Refuse to show experts all tokens where the quantizer cannot. Raises IncompatibleTrial."""
    quant = trial.quant
    asked = quant.uses_calibration and all_experts(trial, setting.facts)
    if asked and not shows_experts_all_tokens(quant):
        raise IncompatibleTrial(
            f"calibration.all_experts=true: {quant.method} ({quant.backend}) shows an expert the tokens "
            "that are sent to it, and no others; gptq, awq and rtn with quant.backend=native show it "
            "all, or leave it out"
        )


def check_requests(trial: TrialConfig, setting: Setting) -> None:
    """Say once what a model cannot give of what was asked for; refuse what cannot be meant.

    Raises:
        ConfigError: more calibration than can be run, windows that do not overlap where they must.
    """
    limit, name = setting.facts.max_length, trial.model.name
    if trial.eval.context is not None and trial.eval.context > limit:
        _note(
            f"eval.context={trial.eval.context}: {name} reads {limit} tokens at a time; "
            f"windows are of {limit}"
        )
    for preset in {name for corpus in trial.corpora for name in trial.eval.presets_for(corpus)}:
        limited_to_model(effective_preset(trial.eval, preset), limit)
    if trial.eval.stride is not None and "strided" not in trial.eval.presets:
        presets = ", ".join(trial.eval.presets)
        _note(f"eval.stride={trial.eval.stride} changes nothing: preset {presets} has no stride")
    if trial.quant.uses_calibration:
        asked = trial.calibration.max_seq_len
        if asked > limit:
            _note(
                f"calibration.max_seq_len={asked}: {name} reads {limit} tokens at a time; "
                f"samples are of {limit}"
            )
        if trial.calibration.all_experts and not setting.facts.experts:
            _note(f"calibration.all_experts=true changes nothing: {name} has no experts")
        check_amount(trial.calibration.num_samples, sample_length(trial, setting.facts))


@functools.cache
def _note(line: str) -> None:
    # Once, however many trials it concerns.
    print(f"note: {hidden(line)}", file=sys.stderr, flush=True)


def _device_elsewhere(trial: TrialConfig) -> str | None:
    """The GPU that a trial asks for whose job runs on another machine; None: what this one has."""
    return "cuda:0" if trial.elsewhere and trial.device.startswith("cuda") else None


def _setting_key(trial: TrialConfig) -> str:
    seen = (trial.calibration.blend, trial.calibration.packing)
    calibration = seen if trial.quant.uses_calibration else None
    return repr((trial.model, trial.corpora, calibration, trial.device, trial.eval))


def _setting(
    trial: TrialConfig, store: Store, settings: dict[str, Setting | QsweepError]
) -> Setting | QsweepError:
    key = _setting_key(trial)
    if key not in settings:
        try:
            path = resolve(trial.model)
            setting = find_setting(trial, path, store, _device_elsewhere(trial))
            if setting.pack is not None:
                require_intact(setting.pack)
            check_tokenizer(setting.facts)
            settings[key] = setting
        except ConfigError:
            raise
        except QsweepError as error:
            settings[key] = error
    return settings[key]
