"""Which trials a sweep can run, and which it cannot and why, before any model is loaded."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qsweep.config import TrialConfig, key_of
from qsweep.errors import ConfigError, IncompatibleTrial, QsweepError
from qsweep.model_check import check_tokenizer
from qsweep.models import resolve
from qsweep.plan import Plan, Setting, find_setting, make_plan
from qsweep.store import Store


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
            trial.quant.check(found.facts)
        except IncompatibleTrial as error:
            refused.append(Unplanned(trial, "skipped", str(error)))
            continue
        plan = make_plan(trial, found)
        reference = plan.reference()
        references.setdefault(reference.key, reference)
        plans.setdefault(plan.key, plan)
    return references | plans, refused


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


def _setting_key(trial: TrialConfig) -> str:
    calibration = trial.calibration.text if trial.quant.uses_calibration else None
    return repr((trial.model, trial.corpora, calibration, trial.device, trial.eval))


def _setting(
    trial: TrialConfig, store: Store, settings: dict[str, Setting | QsweepError]
) -> Setting | QsweepError:
    key = _setting_key(trial)
    if key not in settings:
        try:
            path, notice = resolve(trial.model, store)
            if notice:
                print(f"note: {notice}", file=sys.stderr, flush=True)
            setting = find_setting(trial, path, store)
            check_tokenizer(setting.facts)
            settings[key] = setting
        except ConfigError:
            raise
        except QsweepError as error:
            settings[key] = error
    return settings[key]
