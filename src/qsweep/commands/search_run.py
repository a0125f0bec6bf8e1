"""What Hydra's sweeper runs for a search: it hands over, the launcher runs the trials."""

import itertools
import shlex
from collections.abc import Sequence
from typing import Any

from qsweep.base.console import say
from qsweep.base.disk import check_writable
from qsweep.base.errors import ConfigError, IncompatibleTrial, QsweepError
from qsweep.base.secrets import hidden_value
from qsweep.formats.hardware import Card
from qsweep.launch.interrupts import finishing
from qsweep.results.draws import pooled
from qsweep.results.record import Record
from qsweep.results.record_file import read_records
from qsweep.results.ties import tell_of
from qsweep.search.answer import answer, infeasible
from qsweep.search.budget.mixes import Mixes, overrides_with
from qsweep.search.candidate import PlannedTrial
from qsweep.search.fidelity import Fidelity
from qsweep.search.loop import Search
from qsweep.search.objectives import (
    Constraint,
    check_measured,
    parse_constraint,
    parse_objective,
)
from qsweep.search.on_card import OnCard, memory_of
from qsweep.search.page import write_page
from qsweep.search.settings import SearchConfig, search_config
from qsweep.search.space import NOT_A_TRIALS, Params, Space, mixed_bits, overrides_of
from qsweep.search.storage import open_storage, storage_errors
from qsweep.search.study import Study, StudyTrial
from qsweep.sweep.config import (
    SWEEP_WIDE,
    TrialConfig,
    check_attached,
    several_values,
    sweep_config,
    trial_config,
)
from qsweep.sweep.found import identified
from qsweep.sweep.plan import Plan
from qsweep.sweep.planning import keys_of, plan_all
from qsweep.sweep.session import Session, Sweep, command_line, open_session, open_store
from qsweep.sweep.setting import Setting

# What changes no number; the device's type is part of the protocol.
_NOT_A_RESULTS = ("outputs_dir", "store", "tracking", "device")


class HydraLab:
    """Composes trials and runs them through whatever launcher Hydra was given."""

    def __init__(
        self,
        compose: Any,
        launcher: Any,
        session: Session,
        card: Card | None = None,
        space: Space | None = None,
    ):
        self._compose, self._launcher, self._session = compose, launcher, session
        self.on_card = OnCard(card)
        self.mixes = Mixes(session, space or Space(()), compose, self.on_card.why_not)
        self._launched = 0
        self._width: int | None = None
        self.refusal: str | None = None
        """Why the first combination that cannot exist cannot."""

    @property
    def width(self) -> int:
        """How many trials run at once."""
        return self._width or 1

    def plan(self, overrides: Params) -> PlannedTrial | None:
        """A trial before anything is measured; None if it cannot exist."""
        store, mix, given = self._session.store, None, overrides
        if mixed_bits(overrides) is not None:
            try:
                mix = self.mixes.find(overrides)
            except IncompatibleTrial as error:
                self.refusal = self.refusal or str(error)
                return None
            given = overrides_with(mix, self._session.sweep.directory)
        trial = identified(trial_config(self._compose(overrides_of(given))), store)
        if why := self.on_card.why_not(trial.quant, bool(trial.kv_cache)):
            self.refusal = self.refusal or f"{trial.name}: {why}"
            return None
        plans, refused = plan_all([trial], self._session.store, self._session.settings)
        if refused:
            self.refusal = self.refusal or f"{trial.name}: {refused[0].reason}"
            return None
        if self._width is None:
            self._width = self._session.launcher.capacity([trial.device]).jobs
        (key,) = keys_of([trial], refused, self._session.settings)
        plan = plans[key]
        if plan.is_reference:
            raise ConfigError("quant=none: the reference is measured anyway, and is no answer")
        return PlannedTrial(
            key, trial.name, trial.quant.method, trial.resolved["quant"], given, mix
        )

    def run(self, batch: Sequence[Params]) -> list[Record]:
        """Run trials; returns the record of each."""
        if not batch:
            return []
        jobs = [overrides_of(overrides) for overrides in batch]
        results = self._launcher.launch(jobs, initial_job_idx=self._launched)
        self._launched += len(jobs)
        records = [result.return_value for result in results]
        for record in records:
            if not isinstance(record, Record):
                raise ConfigError(
                    "hydra/launcher: it returns no records; use hydra/launcher=qsweep"
                )
        return records

    def reference(self, fidelity: Fidelity) -> Record | None:
        """The reference's record, once something has been measured at that fidelity."""
        sweep = self._session.sweep
        records = sweep.records if fidelity == "full" else sweep.screening
        return next((r for r in records.values() if r.reference), None)


@storage_errors()
def run_search(sweeper: Any, arguments: Sequence[str]) -> list[Any]:
    """What Hydra's sweeper does: search, print and write the answer.

    Raises:
        ConfigError: the search is not valid, or the stored study is another; nothing has run.
        QsweepError: all trials failed, or none satisfies the constraints; results are written.
    """
    from qsweep.sweep.compose import Composer
    from qsweep.sweep.naming import default_name

    if sweeper.trials:
        raise ConfigError("hydra.sweeper.trials: a search has no rows; see search.enqueue")
    from qsweep.search.sweep_file import read_space

    hydra = sweeper.config.hydra
    config_name = hydra.job.config_name or "config"
    space = read_space(sweeper.params, sweeper.when, arguments)
    for parameter in space.parameters:
        group = parameter.name.lstrip("+~").partition(".")[0]
        if group in SWEEP_WIDE and len(parameter.values) > 1:
            raise several_values(parameter.name)
    compose = Composer(sweeper.hydra_context.config_loader, sweeper.config)
    # Mixes are made of the uniform ones, which say all that is common.
    first = next((p for p in space.combinations() if mixed_bits(p) is None), None)
    if first is None:
        raise ConfigError(
            "bits: a search of mixes alone has nothing to mix; add whole bits, as 2,3,4"
        )
    config = compose(overrides_of(first))
    settings = search_config(config.get("search") or {})
    objectives = [parse_objective(text) for text in settings.objective]
    constraints = [parse_constraint(text) for text in settings.constraints]
    constraints += memory_of(settings.card)
    named = {o.metric: "search.objective" for o in objectives}
    named |= {c.metric: "search.constraints" for c in constraints}
    check_measured(named, trial_config(config).eval)
    _check_references(constraints, space)
    enqueued = [enqueued_params(text, space) for text in settings.enqueue]

    name = sweep_config(config).name or default_name(list(hydra.overrides.task), config_name)
    sweep = Sweep(sweep_config(config, name), name, sweeper.run.command)
    check_attached(sweep.config)
    check_writable(sweep.config.outputs_dir)
    store = open_store(sweep.config)
    found: dict[str, Setting | QsweepError] = {}
    identity = _identity(space, settings, objectives, constraints, compose, store, found)
    sweep.directory.mkdir(parents=True, exist_ok=True)
    storage = open_storage(settings.storage, sweep.directory)
    study = Study(storage, settings.study or name, objectives, identity)
    sweeper.run.began = True
    with sweep.config.launcher as jobs, open_session(sweep, store, jobs, shared=True) as session:
        session.settings.update(found)
        lab = HydraLab(compose, sweeper.launcher, session, settings.card, space)
        sweeper.run.session = session
        try:
            search = Search(settings, space, objectives, constraints, lab, study, say)
            search.run(enqueued)
        finally:
            sweeper.run.session = None
            with finishing():
                entries = study.entries()
                _adopt(session, entries)
                trouble = _trouble(entries, constraints, lab)
                told = tell_of(pooled(session.sweep.records.values()))
                silent = sweep.config.silent_kld
                result = answer(entries, objectives, settings.serving, told, silent)
                commands = _Commands(sweeper, config_name, compose, session)
                page = write_page(
                    sweep, entries, result, objectives, constraints, commands, trouble,
                    [*lab.on_card.lines, *lab.mixes.lines],
                )  # fmt: skip
    sweeper.run.conclude(sweep)
    print(page)
    if trouble:
        raise QsweepError(trouble)
    return []


def _check_references(constraints: Sequence[Constraint], space: Space) -> None:
    # Each model has a reference of its own, and a bound can be a multiple of one alone.
    several = [
        p.name
        for p in space.parameters
        if p.name.lstrip("+~").partition(".")[0] == "model" and len(p.values) > 1
    ]
    for constraint in constraints:
        if constraint.of_reference and several:
            raise ConfigError(
                f"search.constraints: {constraint}: {several[0]} has several values, and each model "
                "a reference of its own; search one model at a time"
            )


def enqueued_params(text: str, space: Space) -> Params:
    """A known good point as a combination of the space. Raises ConfigError where it is none."""
    given: Params = {}
    for override in shlex.split(text):
        name, _, value = override.partition("=")
        given[name] = value
    for params in space.combinations():
        if all(params.get(name) == value for name, value in given.items()):
            return params
    raise ConfigError(f"search.enqueue: {text!r} is no combination of the space")


def _identity(
    space: Space,
    settings: SearchConfig,
    objectives: Sequence[Any],
    constraints: Sequence[Any],
    compose: Any,
    store: Any,
    found: dict[str, Setting | QsweepError],
) -> dict[str, Any]:
    """What makes the results of a study comparable, from the first trial that can exist."""
    reason = "no combination"
    uniform = (p for p in space.combinations() if mixed_bits(p) is None)
    for params in itertools.islice(uniform, 1000):
        trial = identified(trial_config(compose(overrides_of(params))), store)
        plans, refused = plan_all([trial], store, found)
        if refused:
            reason = refused[0].reason
            continue
        plan = list(plans.values())[-1]
        return {
            "space": {
                label: hidden_value(values)
                for label, values in space.describe().items()
                if not label.lstrip("+~").startswith((*NOT_A_TRIALS, *_NOT_A_RESULTS))
            },
            "objective": [str(o) for o in objectives],
            "constraints": [str(c) for c in constraints],
            **({} if settings.card is None else {"hardware": settings.card.name}),
            **({} if trial.resolved.get("seeds") is None else {"seeds": trial.resolved["seeds"]}),
            "few_windows": settings.few_windows,
            "model": plan.setting.model_hash,
            "protocol": _protocol(plan),
        }
    raise QsweepError(f"nothing in the space can run: {reason}")


def _protocol(plan: Plan) -> dict[str, Any]:
    return {
        f"{step.corpus.name} ({step.preset})": {
            k: v for k, v in step.identity.items() if k != "artifact"
        }
        for step in plan.measurements
    }


def _adopt(session: Session, entries: Sequence[StudyTrial]) -> None:
    """Count in what earlier runs and other processes of the study left in the sweep's folder."""
    known = session.sweep.records
    findings = [entry.finding for entry in entries if entry.finding is not None]
    keys = {key for found in findings for key in (found["record"], *found.get("draws", ()))}
    for file, record in read_records(session.sweep.directory):
        if record is None or file.stem in known:
            continue
        if file.stem in keys or record.reference:
            known[file.stem] = record
            session.tracker.log(record)


def _trouble(
    entries: Sequence[StudyTrial], constraints: Sequence[Any], lab: HydraLab
) -> str | None:
    done = [e for e in entries if e.state == "complete"]
    failed = [e for e in entries if e.state == "failed" and e.reason]
    if not done and failed:
        return f"all trials failed; the first: {failed[0].name}: {failed[0].reason}"
    if not entries and lab.on_card.nothing:
        return lab.on_card.nothing
    if not entries:
        return f"nothing in the space can run: {lab.refusal or 'it is empty'}"
    return infeasible(entries, constraints)


class _Commands:
    """The command line that runs one trial alone."""

    def __init__(self, sweeper: Any, config_name: str, compose: Any, session: Session):
        self._loader = sweeper.hydra_context.config_loader
        self._config_name, self._compose, self._session = config_name, compose, session

    def __call__(self, entry: StudyTrial) -> str:
        params = entry.params
        if entry.mix is not None:
            # What the study knows: the file of its rules may be another host's, or gone.
            params = overrides_with(entry.mix, self._session.sweep.directory)
        kept = [
            override
            for override in overrides_of(params)
            if not override.lstrip("+~").startswith(NOT_A_TRIALS)
        ]
        if self._config_name != "config" and not self._same(kept, params):
            # The sweep file itself sets something that counts.
            kept = [f"--config-name={self._config_name}", "hydra.mode=RUN", *kept]
        return command_line(kept)

    def _same(self, overrides: Sequence[str], params: Params) -> bool:
        from hydra.types import RunMode
        from omegaconf import OmegaConf, open_dict

        from qsweep.sweep.compose import plain

        try:
            config = self._loader.load_configuration("config", list(overrides), RunMode.RUN)
            with open_dict(config):
                config.pop("hydra", None)
            alone = trial_config(plain(config, OmegaConf))
        except Exception:  # it does not even compose without the sweep file
            return False
        return self._key(alone) == self._key(trial_config(self._compose(overrides_of(params))))

    def _key(self, trial: TrialConfig) -> str:
        trial = identified(trial, self._session.store)
        _, refused = plan_all([trial], self._session.store, self._session.settings)
        return keys_of([trial], refused, self._session.settings)[0]
