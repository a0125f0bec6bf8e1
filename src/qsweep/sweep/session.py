"""A sweep: plan every trial, run what is missing, record each result as soon as it stands."""

import contextlib
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsweep.base.disk import check_writable
from qsweep.base.environment import environment
from qsweep.base.errors import QsweepError
from qsweep.base.files import write_json
from qsweep.base.leftovers import sweep_away
from qsweep.base.locks import FileLock
from qsweep.base.secrets import hidden_value
from qsweep.base.store import Store
from qsweep.launch import ForkServer, Job, JobResult, make_slots, open_display, run_jobs
from qsweep.launch.interrupts import finishing
from qsweep.results.html import report_sweep
from qsweep.results.labels import named_apart
from qsweep.results.record_file import read_record
from qsweep.results.write import write_results
from qsweep.sweep.baselines import missing_baselines
from qsweep.sweep.config import SweepConfig, sweep_config, trial_config
from qsweep.sweep.plan import Plan, Setting
from qsweep.sweep.planning import Unplanned, keys_of, plan_all, plan_implied
from qsweep.sweep.preflight import require_fitting_models
from qsweep.sweep.recording import (
    Record,
    finished_record,
    now,
    timestamp,
    unfinished_record,
)
from qsweep.sweep.shared_calibration import Pass, Passes
from qsweep.tracking import Tracker, fingerprint, sweep_uid


@dataclass
class Sweep:
    """Where a sweep's results go, and what is known of them so far."""

    config: SweepConfig
    name: str
    command: str
    records: dict[str, Record] = field(default_factory=dict)
    screening: dict[str, Record] = field(default_factory=dict)
    """What a search measured at lower fidelity: kept apart from results."""
    asked: list[str] = field(default_factory=list)
    """Keys of the configurations that were asked for, in their order."""

    @property
    def directory(self) -> Path:
        """The sweep's folder."""
        return self.config.outputs_dir / "sweeps" / self.name

    @property
    def shown(self) -> list[Record]:
        """The results, and what failed at lower fidelity: a search never came to try that in full."""
        failed = [r for r in self.screening.values() if r["status"] == "failed"]
        return [*self.records.values(), *failed]

    @property
    def exit_code(self) -> int:
        """0 unless a trial failed, or nothing finished though something was asked for."""
        failed = [r for r in self.shown if r["status"] == "failed"]
        asked = [r for r in self.records.values() if not r.get("implied")]
        none_finished = not any(r["status"] == "finished" for r in asked)
        # What only a check wanted is told among its reasons, and spoils nothing that was asked for.
        return int(none_finished or any(r.get("reference") or not r.get("implied") for r in failed))


@dataclass(frozen=True)
class Session:
    """A sweep under way, and what its batches of trials share."""

    sweep: Sweep
    store: Store
    tracker: Tracker
    server: ForkServer
    settings: dict[str, "Setting | QsweepError"] = field(default_factory=dict)

    def run_configs(self, configs: Sequence[Mapping[str, Any]]) -> list[Record]:
        """Run a batch of composed configurations; returns the record of each.

        Raises:
            ConfigError: something in a configuration is invalid; none of the batch has run.
        """
        trials = [trial_config(config) for config in configs]
        plans, refused = plan_all(trials, self.store, self.settings)
        require_fitting_models(plans.values(), self.store, self.server)
        keys = keys_of(trials, refused, self.settings)
        self.sweep.asked += keys
        _run(self, plans, refused)
        everything = self.sweep.records | self.sweep.screening
        return [everything[key] for key in keys]


def run_sweep(configs: Sequence[Mapping[str, Any]], name: str, command: str) -> Sweep:
    """Run the trials that composed configurations describe, and all that they rest on.

    Raises:
        ConfigError: something in the configuration is invalid; nothing has run.
    """
    trials = [trial_config(config) for config in configs]
    sweep = Sweep(sweep_config(configs[0]), name, command)
    check_writable(sweep.config.outputs_dir)
    store = open_store(sweep.config)
    settings: dict[str, Setting | QsweepError] = {}
    plans, refused = plan_all(trials, store, settings)
    sweep.asked = keys_of(trials, refused, settings)
    plans |= plan_implied(missing_baselines(trials), store, settings)
    with ForkServer() as server:
        require_fitting_models(plans.values(), store, server)
        with open_session(sweep, store, server) as session:
            _run(session, plans, refused)
    return sweep


@contextlib.contextmanager
def open_session(
    sweep: Sweep, store: Store, server: ForkServer, *, shared: bool = False
) -> Iterator[Session]:
    """Open a sweep's folder and its tracker; at the end, write its results and finish its run.

    One process at a time, unless it is ``shared`` by several that search one study.
    """
    sweep.directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(
        sweep.directory / ".lock", notice=lambda line: _say(f"sweep {sweep.name}: {line}")
    )
    with contextlib.nullcontext() if shared else lock:
        sweep_away(sweep.config.outputs_dir)
        write_json(
            sweep.directory / "sweep.json",
            {
                "name": sweep.name,
                "command": sweep.command,
                "started": now(),
                "uid": sweep_uid(sweep.directory),
            },
        )
        tracker = Tracker(sweep.config.tracking, sweep.directory, sweep.config.outputs_dir, _say)
        tracker.start(sweep.name, sweep.command)
        interrupted = True
        try:
            yield Session(sweep, store, tracker, server)
            interrupted = False
        finally:
            with finishing():
                server.close()  # first: children must not outlive an interrupt by seconds
                records = sweep.shown
                write_results(sweep.directory, records, sweep.command)
                report_sweep(sweep.directory, records, sweep.command, _say)
                tracker.finish(records, interrupted=interrupted)


def open_store(config: SweepConfig) -> Store:
    """The store of everything below a sweep's outputs."""
    return Store(config.outputs_dir / "store")


def _run(session: Session, plans: Mapping[str, Plan], refused: Sequence[Unplanned]) -> None:
    sweep, store = session.sweep, session.store
    asked = frozenset(sweep.asked)
    facts = environment()

    def record(content: Record, *, cached: bool, **more: Any) -> None:
        full = content["fidelity"] == "full"
        folder = sweep.directory / ("trials" if full else "screening")
        file = folder / f"{content['key']}.json"
        content |= {
            "sweep": sweep.name,
            "command": sweep.command,
            "environment": facts,
            "log": str(_log(sweep, content["key"])),
            "cached": cached,
            "implied": content["key"] not in asked,
            **more,
        }
        earlier = (read_record(file) if cached else None) or {}
        if cached and not earlier and file.exists():
            _say(f"note: {file}: no record that can be read; it is written again")
        known = (
            fingerprint(earlier) == fingerprint(_as_far_as(content, earlier)) if earlier else False
        )
        if not known or content.keys() - earlier.keys():
            write_json(file, content | earlier if known else content)
        if known:
            # Keep what says when, where and by which command it really was made.
            content = content | earlier | {"cached": True}
        (sweep.records if full else sweep.screening)[content["key"]] = content
        if full:
            session.tracker.log(content)

    for item in refused:
        content = unfinished_record(item.trial, item.key, item.status, item.reason)
        record(content, cached=False, started=now(), ended=now())
    names = _names(plans, asked)
    missing: dict[str, Plan] = {}
    for key, plan in plans.items():
        done = finished_record(plan, store)
        if done and not any(task["reason"] for task in done.get("tasks") or ()):
            record(done, cached=True)
        else:
            missing[key] = plan
    if not missing:
        return
    session.server.start()  # imports torch while the rest is prepared
    slots = make_slots(sweep.config.n_jobs, [_device(plan) for plan in missing.values()])
    passes = Passes(missing.values(), store, slots.count)

    def on_done(job: Job, result: JobResult) -> None:
        if job.id not in missing:
            return  # a pass: its trials tell what became of it
        plan = missing[job.id]
        done = finished_record(plan, store) if result.status == "finished" else None
        if done is None:
            status = "skipped" if result.status == "skipped" else "failed"
            reason = result.reason or "what it made is no longer in the store"
            done = unfinished_record(plan.trial, job.id, status, reason, plan.setting.model_hash)
        started = None if result.started is None else timestamp(result.started)
        record(done, cached=False, seconds=result.seconds, started=started, ended=now())

    def trial_job(plan: Plan) -> Job:
        return _job(plan, names[plan.key], sweep, store, missing, passes.needs(plan))

    def pass_jobs(some: Iterable[Pass]) -> list[Job]:
        return [_pass_job(one, sweep, store) for one in some]

    def retry(job: Job, _: JobResult) -> list[Job]:
        concerned = [plan for plan in missing.values() if job.id in passes.needs(plan)]
        halves = passes.split(job.id)
        return pass_jobs(halves) + [trial_job(plan) for plan in concerned]

    jobs = pass_jobs(passes) + [trial_job(plan) for plan in missing.values()]
    with open_display(len(missing), sweep.name, slots.count) as display:
        run_jobs(
            jobs,
            slots=slots,
            on_event=display.event,
            on_done=on_done,
            retry=retry,
            server=session.server,
        )


def _pass_job(one: Pass, sweep: Sweep, store: Store) -> Job:
    return one.job(store, _log(sweep, one.id), sweep.config.timeout_s, _device(one.plans[0]))


def _job(
    plan: Plan,
    name: str,
    sweep: Sweep,
    store: Store,
    missing: Mapping[str, Plan],
    passes: tuple[str, ...],
) -> Job:
    reference = _missing_reference(plan, missing)
    return Job(
        id=plan.key,
        name=name,
        target="qsweep.sweep.trial:run",
        payload={
            "config": plan.trial.resolved,
            "store": str(store.root),
            "model": str(plan.setting.facts.path),
        },
        log=_log(sweep, plan.key),
        timeout_s=sweep.config.timeout_s,
        needs=passes + ((reference,) if reference is not None else ()),
        device=_device(plan),
    )


def _names(plans: Mapping[str, Plan], asked: Collection[str]) -> dict[str, str]:
    """What trials are called while they run, by key: as in the table."""
    outlines = [
        unfinished_record(plan.trial, key, "planned", "", plan.setting.model_hash)
        | {"implied": key not in asked}
        for key, plan in plans.items()
    ]
    return {record["key"]: record["name"] for record in named_apart(outlines)}


def _as_far_as(content: Record, earlier: Record) -> Record:
    # An older version wrote fewer fields: what is new is no other result.
    return {name: value for name, value in content.items() if name in earlier}


def _missing_reference(plan: Plan, missing: Mapping[str, Plan]) -> str | None:
    """The trial still to run that measures what a trial is compared with."""
    if plan.is_reference:
        return None
    reference = plan.reference()
    if reference.key in missing:
        return reference.key
    # A baseline is measured on less than the trials that it is for, and so is its reference.
    wanted = {step.key for step in reference.measurements}
    for key, other in missing.items():
        if other.is_reference and wanted <= {step.key for step in other.measurements}:
            return key
    return None


def _log(sweep: Sweep, key: str) -> Path:
    return sweep.directory / "logs" / f"{key}.log"


def _device(plan: Plan) -> str:
    # A trial that may use any GPU takes the one of its slot; one spread by device_map takes all.
    if plan.setting.device == "cpu":
        return "cpu"
    return "all" if plan.trial.model.device_map else plan.trial.device


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def command_line(arguments: Sequence[str]) -> str:
    """The command that was given, as one would type it again, passwords left out."""
    return shlex.join(["qsweep", *map(hidden_value, arguments)])
