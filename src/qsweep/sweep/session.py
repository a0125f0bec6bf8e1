"""A sweep: plan every trial, run what is missing, record each result as soon as it stands."""

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qsweep.base.cleanup import remove_abandoned
from qsweep.base.console import say
from qsweep.base.disk import check_writable
from qsweep.base.errors import QsweepError
from qsweep.base.files import write_json
from qsweep.base.locks import FileLock
from qsweep.base.secrets import hidden_value
from qsweep.base.store import Store
from qsweep.launch import Launcher
from qsweep.launch.interrupts import finishing
from qsweep.results.html import report_sweep
from qsweep.results.record import Record
from qsweep.results.write import write_results
from qsweep.sweep.baselines import missing_baselines
from qsweep.sweep.config import SweepConfig, sweep_config, trial_config
from qsweep.sweep.found import identified
from qsweep.sweep.plan import Plan
from qsweep.sweep.planning import Unplanned, keys_of, plan_all, plan_implied
from qsweep.sweep.preflight import require_fitting_models
from qsweep.sweep.recorder import Recorder
from qsweep.sweep.recording import now
from qsweep.sweep.run import run_plans
from qsweep.sweep.setting import Setting
from qsweep.sweep.state import Sweep
from qsweep.tracking import Tracker, sweep_uid

__all__ = ["Session", "Sweep", "command_line", "open_session", "open_store", "run_sweep"]


@dataclass(frozen=True)
class Session:
    """A sweep under way, and what its batches of trials share."""

    sweep: Sweep
    store: Store
    tracker: Tracker
    launcher: Launcher
    settings: dict[str, "Setting | QsweepError"] = field(default_factory=dict)

    def run_configs(self, configs: Sequence[Mapping[str, Any]]) -> list[Record]:
        """Run a batch of composed configurations; returns the record of each.

        Raises:
            ConfigError: something in a configuration is invalid; none of the batch has run.
        """
        trials = [identified(trial_config(config), self.store) for config in configs]
        plans, refused = plan_all(trials, self.store, self.settings)
        require_fitting_models(plans.values(), self.store, self.launcher)
        keys = keys_of(trials, refused, self.settings)
        self.sweep.asked += keys
        self.run(plans, refused)
        return [self.sweep.everything[key] for key in keys]

    def run(self, plans: Mapping[str, Plan], refused: Sequence[Unplanned]) -> None:
        """Run what is missing of these plans, and record all."""
        recorder = Recorder(self.sweep, self.tracker)
        run_plans(plans, refused, self.sweep, self.store, recorder, self.launcher)


def run_sweep(configs: Sequence[Mapping[str, Any]], name: str, command: str) -> Sweep:
    """Run the trials that composed configurations describe, and all that they rest on.

    Raises:
        ConfigError: something in the configuration is invalid; nothing has run.
    """
    trials = [trial_config(config) for config in configs]
    sweep = Sweep(sweep_config(configs[0], name), name, command)
    check_writable(sweep.config.outputs_dir)
    store = open_store(sweep.config)
    trials = [identified(trial, store) for trial in trials]
    settings: dict[str, Setting | QsweepError] = {}
    plans, refused = plan_all(trials, store, settings)
    sweep.asked = keys_of(trials, refused, settings)
    plans |= plan_implied(missing_baselines(trials), store, settings)
    with sweep.config.launcher as launcher:
        require_fitting_models(plans.values(), store, launcher)
        with open_session(sweep, store, launcher) as session:
            session.run(plans, refused)
    return sweep


@contextlib.contextmanager
def open_session(
    sweep: Sweep, store: Store, launcher: Launcher, *, shared: bool = False
) -> Iterator[Session]:
    """Open a sweep's folder and its tracker; at the end, write its results and finish its run.

    One process at a time, unless it is ``shared`` by several that search one study.
    """
    sweep.directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(
        sweep.directory / ".lock",
        notice=lambda line: say(f"sweep {sweep.name}: {line}"),
        optional=True,
    )
    with contextlib.nullcontext() if shared else lock:
        remove_abandoned(sweep.config.outputs_dir)
        write_json(
            sweep.directory / "sweep.json",
            {
                "name": sweep.name,
                "command": sweep.command,
                "started": now(),
                "uid": sweep_uid(sweep.directory),
            },
        )
        tracker = sweep.config.tracker
        tracker.start(sweep.folder, say)
        interrupted = True
        try:
            yield Session(sweep, store, tracker, launcher)
            interrupted = False
        finally:
            with finishing():
                launcher.close()  # first: children must not outlive an interrupt by seconds
                records = sweep.shown
                if store.remote is not None and not interrupted:
                    store.remote.settle(store.root)
                write_results(sweep.directory, records, sweep.command)
                report_sweep(sweep.directory, records, sweep.command, say)
                tracker.finish(records, interrupted=interrupted)


def open_store(config: SweepConfig) -> Store:
    """The store of everything below a sweep's outputs, and its remote copy, if there is one.

    Raises:
        ConfigError: The remote copy cannot be read, or not be written and is to be.
    """
    store = Store.below(config.outputs_dir, config.store)
    if store.remote is not None:
        store.remote.check()
        store.remember()
    return store


def command_line(arguments: Sequence[str]) -> str:
    """The command that was given, as one would type it again, passwords left out."""
    return shlex.join(["qsweep", *map(hidden_value, arguments)])
