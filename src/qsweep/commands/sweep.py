"""``python -m qsweep``: hands the command line to Hydra, and its errors to people."""

import copy
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qsweep.base.disk import disk_errors
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.files import write_bytes
from qsweep.base.secrets import hidden_value
from qsweep.base.shipped import choices, folder
from qsweep.commands.entry import Parser, command
from qsweep.sweep.compose import register_resolvers
from qsweep.sweep.explain import explain, refused_option
from qsweep.sweep.naming import default_name
from qsweep.sweep.option_names import chosen_quantizers
from qsweep.sweep.overrides import acceptable, is_option

# What the sweep that Hydra ran came to; Hydra returns nothing through its own main.
_outcomes: list[Any] = []
# What Hydra composed for this process to run as one sweep, once Hydra itself is done.
_composed: list[tuple[Any, str]] = []
_refusals: list[ConfigError] = []
# The process that Hydra was started in; a foreign launcher may call from another.
_process: list[int] = []
# Whether composing is over and a sweep has begun, so that an error is no longer the configuration's.
_began: list[bool] = []
# What of Hydra's own leaves all trials in this process, and in one sweep.
_ONE_PROCESS = (
    "hydra_plugins.qsweep_launcher.QsweepLauncher",
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
)
_ONE_SWEEP = (
    "hydra_plugins.qsweep_sweeper.QsweepSweeper",
    "hydra_plugins.qsweep_sweeper.QsweepOptunaSweeper",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
)
# The session of a search, whose batches all belong to one sweep.
sessions: list[Any] = []


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run Hydra on the command line; returns the exit code.

    2: the configuration is invalid and nothing ran; 1: a trial failed or none finished; 0: the rest
    finished or were skipped; 130 and 143: interrupted, or ended by SIGTERM.
    """
    sys.argv[1:] = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with disk_errors():
            _run_hydra()
    except KeyboardInterrupt as error:
        what = "ended by SIGTERM" if error.args == ("SIGTERM",) else "interrupted"
        print(f"{what}; the same command goes on where it stopped", file=sys.stderr)
        raise
    return max((sweep.exit_code for sweep in _outcomes), default=0)


def _run_hydra() -> None:
    """Everything that Hydra does: compose, and for several trials run them.

    Raises:
        ConfigError: whatever is wrong with the configuration; nothing has run.
    """
    # Hydra raises instead of printing a page of its own and exiting with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    options = _arguments()
    register_resolvers()
    _process[:] = [os.getpid()]
    try:
        _check_files(options)
        options.overrides = [acceptable(one, choices()) for one in options.overrides]
        # Hydra finds that out too, but only where nothing is wrong with the rest.
        options.multirun = options.multirun or _is_multirun(options)
        _compose_and_run(options)
        if _refusals:
            raise _refusals[0]
        if _composed:
            configs = [config for config, _ in _composed]
            run_composed(configs, list(options.overrides), _composed[0][1])
    except QsweepError:
        raise
    except Exception as error:
        if _began or getattr(error, "errno", None):
            raise
        raise ConfigError(explain(error)) from error


def _compose_and_run(options: Any) -> None:
    from hydra._internal import utils

    for _ in range(len(options.overrides) + 1):
        given = copy.copy(options)
        given.overrides = list(options.overrides)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _note  # type: ignore[assignment]
                utils._run_hydra(
                    args=given,
                    args_parser=_parser(),
                    task_function=run_one,
                    config_path=str(folder("conf")),
                    config_name="config",
                )
            return
        except Exception as error:
            key = refused_option(error)
            if _began or key is None or not is_option(key, chosen_quantizers(options.overrides)):
                raise
            # No file names it, the typed configuration does: that is no reason to refuse it.
            added = [f"++{o}" if o.partition("=")[0] == key else o for o in options.overrides]
            if added == options.overrides:
                raise
            options.overrides = added


def _arguments() -> Any:
    return _parser().parse_intermixed_args()


def _parser() -> Any:
    from hydra._internal.utils import get_args_parser

    from qsweep.base.version import __version__

    parser = Parser(
        "python -m qsweep", parents=[get_args_parser()], conflict_handler="resolve", add_help=False
    )
    parser.add_argument("--version", action="version", version=f"qsweep {__version__}")
    return parser


def _note(message: Warning | str, *_: Any) -> None:
    print("note: " + " ".join(str(message).split()), file=sys.stderr)


def _check_files(options: Any) -> None:
    """Refuse what Hydra would open and wait for: pipes and devices where a YAML file is expected."""
    given = [Path(place) for place in (options.config_dir, options.config_path) if place]
    groups = ["", *choices(), *(o.lstrip("+").partition("=")[0] for o in options.overrides)]
    name = f"{options.config_name}.yaml" if options.config_name else ""
    for place in (*given, folder("sweeps"), folder("conf")):
        for file in [place / name, *(f for g in groups for f in (place / g).glob("*.yaml"))]:
            if file.exists() and not (file.is_file() or file.is_dir()):
                raise ConfigError(f"{file}: is a pipe or a device, not a file")
    if options.config_name is not None and not options.config_name.strip():
        raise ConfigError("--config-name: needs a name; python -m qsweep.sweeps lists them")


def _is_multirun(arguments: Any) -> bool:
    """Whether the sweep file that is named wants several trials, and the command line no other."""
    from omegaconf import OmegaConf

    other = arguments.run or arguments.cfg or arguments.info or arguments.shell_completion
    if other or any(override.startswith("hydra.mode=") for override in arguments.overrides):
        return False
    places = [Path(arguments.config_dir)] if arguments.config_dir else []
    for place in (*places, folder("sweeps")):
        file = place / f"{arguments.config_name}.yaml"
        if file.is_file():
            try:
                return OmegaConf.select(OmegaConf.load(file), "hydra.mode") == "MULTIRUN"
            except Exception:  # Hydra says what is wrong with the file
                return False
    return False


def run_one(config: Any) -> Any:
    """What Hydra calls with a configuration: kept, and run once Hydra is done.

    So errors are ours to report, and the trials of a launcher that calls this one by one, as Hydra's
    own does, become one sweep.

    Raises:
        ConfigError: it is called by a launcher that runs elsewhere, each trial a sweep of its own.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    name = hydra.job.config_name or "config"
    if hydra.output_subdir:
        hide_in_files(Path(hydra.runtime.output_dir) / hydra.output_subdir)
    if hydra.mode == RunMode.MULTIRUN:
        hide_in_files(Path(hydra.sweep.dir))  # another sweeper's multirun.yaml
        try:
            require_one_process(hydra)
        except ConfigError as error:
            if _process != [os.getpid()]:
                raise
            _refusals.append(error)  # raised here, Hydra would print a line of its own
            return None
        if sessions:
            return run_composed([config], [], name)[0]
    _composed.append((config, name))
    return None


def require_one_process(hydra: Any) -> None:
    """Refuse launchers and sweepers of Hydra that would make many sweeps of one. Raises ConfigError.

    One sweep shares its reference, its calibration passes and its table; what runs its trials is
    qsweep's own launcher, chosen by ``launch``.
    """
    if hydra.launcher._target_ not in _ONE_PROCESS:
        choice = hydra.runtime.choices.get("hydra/launcher")
        raise ConfigError(
            f"hydra/launcher={choice}: would make a sweep of every trial; leave it out, "
            "and say with launch=NAME and n_jobs=N what runs the trials of one sweep"
        )
    if hydra.sweeper._target_ not in _ONE_SWEEP:
        choice = hydra.runtime.choices.get("hydra/sweeper")
        raise ConfigError(
            f"hydra/sweeper={choice}: would make a sweep of every batch; leave it out for a grid, "
            "and search with hydra/sweeper=qsweep_optuna +search=default"
        )


def keep(configs: list[Any], name: str) -> None:
    """Keep composed configurations to run them as one sweep with all others."""
    _composed.extend((config, name) for config in configs)


def hide_in_files(folder: Path) -> None:
    """Take passwords out of what Hydra itself writes, where a person has switched that on."""
    for file in folder.glob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        shown = "\n".join(map(hidden_value, text.split("\n")))
        if shown != text:
            write_bytes(file, shown.encode())


def run_composed(configs: list[Any], overrides: list[str], config_name: str) -> list[Any]:
    """Run composed configurations as one sweep, or as a batch of the search that is under way.

    Prints the sweep's table and remembers the outcome. Returns the record of each configuration.
    """
    from qsweep.search.batch import one_batch
    from qsweep.sweep.config import sweep_config
    from qsweep.sweep.session import command_line, run_sweep

    resolved = one_batch(configs)
    begin()
    if sessions:
        return sessions[-1].run_configs(resolved)
    name = sweep_config(resolved[0]).name or default_name(overrides, config_name)
    sweep = run_sweep(resolved, name, command_line(sys.argv[1:]))
    conclude(sweep)
    return [sweep.records[key] for key in sweep.asked]


def begin() -> None:
    """Say that composing is over: what goes wrong from now on is no error of the configuration."""
    _began.append(True)


def conclude(sweep: Any) -> None:
    """Print what a sweep came to, and remember it for the exit code."""
    from qsweep.results.terminal import print_results

    print_results(sweep.shown, sweep.directory)
    for line in sweep.config.tracker.hints(sweep.folder):
        print(line)
    if (report := sweep.directory / "report.html").is_file():
        print(f"report: {report}")
    _outcomes.append(sweep)
