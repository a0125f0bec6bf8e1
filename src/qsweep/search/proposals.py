"""What to try next in a space too large to try all of: Optuna's samplers.

The sampler works on a study of its own, in memory: what it proposes twice, or what cannot exist,
never reaches the stored study.
"""

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.base.schema import nearest
from qsweep.search.objectives import Objective
from qsweep.search.settings import SearchConfig
from qsweep.search.space import Params, Space
from qsweep.search.study import StudyTrial, study_params, with_secrets

_SAMPLERS = {
    "tpe": "TPESampler",
    "nsga2": "NSGAIISampler",
    "nsga3": "NSGAIIISampler",
    "gp": "GPSampler",
    "random": "RandomSampler",
    "brute_force": "BruteForceSampler",
}
_MOST_NEIGHBOURS = 20_000


class Proposals:
    """Proposes untried combinations, learning from the study's entries."""

    def __init__(self, settings: SearchConfig, space: Space, objectives: Sequence[Objective]):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._random = random.Random(settings.seed)  # noqa: S311 - a search, no secret
        self._proposed: dict[str, Any] = {}
        self._known: set[int] = set()
        self._scratch = optuna.create_study(
            directions=[o.direction for o in objectives], sampler=make_sampler(settings)
        )
        self._objectives = objectives

    def propose(
        self, key_of: Callable[[Params], str | None], taken: set[str], entries: Sequence[StudyTrial]
    ) -> Params | None:
        """An untried combination; None if there is none left.

        Args:
            key_of: the key of a combination, None if it cannot exist.
            taken: keys that are not to be proposed.
            entries: what is known.
        """
        self._learn(entries)
        trial = self._scratch.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            params = self._suggest(trial)
        key = key_of(params)
        if key is not None and key not in taken:
            self._proposed[key] = trial
            return params
        # Asked again, a sampler that has settled repeats itself: what it wants is about here.
        self._scratch.tell(trial, state=_fail())
        return self._neighbour(params, key_of, taken)

    def _suggest(self, trial: Any) -> Params:
        params: Params = {}
        for parameter in self._space.parameters:
            if parameter.applies(params):
                value = parameter.values[0]
                if len(parameter.values) > 1:
                    label = self._space.label(parameter)
                    value = trial.suggest_categorical(label, parameter.values)
                params[parameter.name] = value
        return params

    def _neighbour(
        self, params: Params, key_of: Callable[[Params], str | None], taken: set[str]
    ) -> Params | None:
        others = []
        for number, other in enumerate(self._space.combinations()):
            if number >= _MOST_NEIGHBOURS:
                break
            distance = len(set(other.items()) ^ set(params.items()))
            others.append((distance, self._random.random(), other))
        for _, _, other in sorted(others, key=lambda item: item[:2]):
            key = key_of(other)
            if key is not None and key not in taken:
                return other
        return None

    def _learn(self, entries: Sequence[StudyTrial]) -> None:
        from optuna.trial import create_trial

        for entry in entries:
            if entry.number in self._known or entry.state == "running":
                continue
            self._known.add(entry.number)
            values = _values(entry, self._objectives)
            mine = self._proposed.pop(entry.key, None)
            if mine is not None:
                for name, excess in entry.violations.items():
                    mine.set_constraint(name, excess)
                self._scratch.tell(mine, values, state=None if values else _fail())
            elif values is not None:
                labels, distributions = study_params(
                    with_secrets(entry.params, self._space), self._space
                )
                self._scratch.add_trial(
                    create_trial(
                        params=labels,
                        distributions=distributions,
                        values=values,
                        constraints=entry.violations or None,
                    )
                )


def make_sampler(settings: SearchConfig) -> Any:
    """Optuna's sampler by its short name, seeded. Raises ConfigError for options it has not."""
    import inspect

    import optuna

    cls = getattr(optuna.samplers, _SAMPLERS[settings.sampler])
    options: dict[str, Any] = {"seed": settings.seed}
    if settings.sampler == "tpe":
        # Parameters that exist under a condition only are modelled together with their kind.
        options |= {"group": True, "multivariate": True}
    known = inspect.signature(cls).parameters
    for name in settings.sampler_options:
        if name not in known:
            raise ConfigError(
                f"search.sampler_options.{name}: no such option{nearest(name, known)}"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cls(**(options | settings.sampler_options))


def _values(entry: StudyTrial, objectives: Sequence[Objective]) -> list[float] | None:
    """What a sampler may learn from an entry: of a dropped one, what the lower rung showed."""
    if entry.values is not None:
        return list(entry.values)
    if entry.state != "dropped" or entry.estimate is None:
        return None
    found = [entry.estimate.spans[o.metric][1] for o in objectives]
    return found if all(value == value for value in found) else None


def _fail() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL
