"""``qsweep -m …``: hands the command line to Hydra, and its errors to people."""

import copy
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.config_files import config_folder, group_choices
from qsweep.base.disk import disk_errors
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.files import write_bytes
from qsweep.base.secrets import hidden_value
from qsweep.commands.entry import Parser, command
from qsweep.launch.protocol import Detached
from qsweep.sweep.compose import register_resolvers
from qsweep.sweep.explain import explain, refused_option
from qsweep.sweep.naming import default_name
from qsweep.sweep.option_names import chosen_quantizers
from qsweep.sweep.overrides import acceptable, is_option

if TYPE_CHECKING:
    from qsweep.results.record import Record
    from qsweep.sweep.session import Session
    from qsweep.sweep.state import Sweep

# What of Hydra's own leaves all trials in this process, and in one sweep.
_ONE_PROCESS = (
    "hydra_plugins.qsweep_launcher.QsweepLauncher",
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
)
_ONE_SWEEP = (
    "hydra_plugins.qsweep_sweeper.QsweepSweeper",
    "hydra_plugins.qsweep_sweeper.QsweepOptunaSweeper",
    "hydra_plugins.qsweep_sweeper.QsweepBudgetSweeper",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run Hydra on the command line; returns the exit code.

    2: the configuration is invalid and nothing ran; 1: a trial failed or none finished; 0: the rest
    finished or were skipped; 130 and 143: interrupted, or ended by SIGTERM.
    """
    return run_hydra(sys.argv[1:] if arguments is None else arguments)


def run_hydra(arguments: Sequence[str]) -> int:
    """Compose what a command line says, and run it; returns the exit code."""
    run = HydraRun(arguments)
    try:
        with disk_errors():
            options = parser().parse_intermixed_args(arguments)
            if options.detach:
                options.overrides.append("launch.detach=true")
            _run_hydra(run, options)
    except ConfigError as error:
        if arguments and "--detach" in arguments and str(error).startswith("launch.detach: no "):
            raise ConfigError(
                "--detach: this launcher cannot leave its jobs to others; launch=workers and launch=slurm can"
            ) from error
        raise
    except Detached as left:
        print(left)
        return 0
    except KeyboardInterrupt as error:
        what = "ended by SIGTERM" if error.args == ("SIGTERM",) else "interrupted"
        print(f"{what}; the same command goes on where it stopped", file=sys.stderr)
        raise
    return max((sweep.exit_code for sweep in run.sweeps), default=0)


class HydraRun:
    """One command line in Hydra's hands: what Hydra calls back, and what came of it.

    Hydra takes it for the task function and hands it to its launcher and sweeper, which give back
    what they have composed: :meth:`run_composed`.

    Args:
        arguments: what was typed behind ``qsweep``.
    """

    def __init__(self, arguments: Sequence[str]):
        self._arguments = list(arguments)
        self.began = False
        """Whether composing is over: what goes wrong from now on is no error of the configuration."""
        self.session: Session | None = None
        """A search's, whose batches all belong to one sweep."""
        self.sweeps: list[Sweep] = []
        """What came of it; Hydra returns nothing through its own main."""
        self._kept: list[tuple[Any, str]] = []
        self._refusal: ConfigError | None = None
        self._process = os.getpid()

    @property
    def command(self) -> str:
        """What was typed, for the records."""
        from qsweep.sweep.session import command_line

        return command_line(self._arguments)

    def __call__(self, config: Any) -> "Record | None":
        """Keep a configuration, for :meth:`run_kept`.

        So errors are ours to report, and the trials of a launcher that calls this one by one, as
        Hydra's own does, become one sweep. In a search it is run at once, and gives its record.

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
                if os.getpid() != self._process:
                    raise
                self._refusal = error  # raised here, Hydra would print a line of its own
                return None
            if self.session is not None:
                return self.run_composed([config], [], name)[0]
        self.keep([config], name)
        return None

    def keep(self, configs: Sequence[Any], name: str) -> None:
        """Keep composed configurations to run them as one sweep with all others."""
        self._kept.extend((config, name) for config in configs)

    def run_kept(self, overrides: Sequence[str]) -> None:
        """Run what was kept as one sweep, now that Hydra is done.

        Raises:
            ConfigError: a launcher that was refused has called.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._kept:
            configs = [config for config, _ in self._kept]
            self.run_composed(configs, list(overrides), self._kept[0][1])

    def run_composed(
        self, configs: Sequence[Any], overrides: list[str], config_name: str
    ) -> "list[Record]":
        """Run configurations as one sweep, or as a batch of the search that is under way.

        Returns the record of each configuration: the mean over its draws where it has several.
        """
        from qsweep.results.draws import one_for_each
        from qsweep.search.batch import one_batch
        from qsweep.sweep.compose import resolved
        from qsweep.sweep.config import sweep_config
        from qsweep.sweep.session import run_sweep

        composed = resolved(configs)
        batch = one_batch(composed, overrides)
        self.began = True
        draws = [len(config.draws) or 1 for config in composed]
        if self.session is not None:
            if len(batch) != sum(draws):
                raise ConfigError("quant.file: give the files that are searched one by one")
            records = self.session.run_configs(batch)
            return one_for_each(draws, records, self.session.sweep.everything.values())
        name = sweep_config(batch[0]).name or default_name(overrides, config_name)
        sweep = run_sweep(batch, name, self.command)
        self.conclude(sweep)
        records = [sweep.records[key] for key in sweep.asked]
        if len(records) != sum(draws):
            return records
        return one_for_each(draws, records, sweep.records.values())

    def conclude(self, sweep: "Sweep") -> None:
        """Print what a sweep came to, and remember it for the exit code."""
        print_outcome(sweep)
        self.sweeps.append(sweep)


def _run_hydra(run: HydraRun, options: Any) -> None:
    """Everything that Hydra does: compose, and for several trials run them.

    Raises:
        ConfigError: whatever is wrong with the configuration; nothing has run.
    """
    # Hydra raises instead of printing a page of its own and exiting with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if options.help:
        from qsweep.commands.help import help_text

        print(help_text(options.config_dir))
        return
    if options.shell_completion:
        from qsweep.commands.completion import complete

        if complete(options.overrides):
            return
    register_resolvers()
    try:
        _check_files(options)
        options.overrides = [acceptable(one, group_choices()) for one in options.overrides]
        # Hydra finds that out too, but only where nothing is wrong with the rest.
        options.multirun = options.multirun or _is_multirun(options)
        _compose_and_run(run, options)
        run.run_kept(options.overrides)
    except QsweepError:
        raise
    except Exception as error:
        if run.began or getattr(error, "errno", None):
            raise
        raise ConfigError(explain(error)) from error


def _compose_and_run(run: HydraRun, options: Any) -> None:
    from hydra._internal import utils

    for _ in range(len(options.overrides) + 1):
        given = copy.copy(options)
        given.overrides = list(options.overrides)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _note  # type: ignore[assignment]
                utils._run_hydra(
                    args=given,
                    args_parser=parser(),
                    task_function=run,
                    config_path=str(config_folder("conf")),
                    config_name="config",
                )
            return
        except Exception as error:
            key = refused_option(error)
            if run.began or key is None:
                raise
            if not is_option(key, chosen_quantizers(options.overrides)):
                raise
            # No file names it, the typed configuration does: that is no reason to refuse it.
            added = [f"++{o}" if o.partition("=")[0] == key else o for o in options.overrides]
            if added == options.overrides:
                raise
            options.overrides = added


def parser() -> Any:
    """Hydra's own parser, with qsweep's way to say what is wrong."""
    from hydra._internal.utils import get_args_parser

    from qsweep.base.version import __version__

    parser = Parser(
        "qsweep", parents=[get_args_parser()], conflict_handler="resolve", add_help=False
    )
    parser.add_argument("--version", action="version", version=f"qsweep {__version__}")
    parser.add_argument(
        "--detach",
        action="store_true",
        help="leave the jobs to workers: launch.detach=true",
    )
    return parser


def _note(message: Warning | str, *_: Any) -> None:
    print("note: " + " ".join(str(message).split()), file=sys.stderr)


def _check_files(options: Any) -> None:
    """Refuse what Hydra would open and wait for: pipes and devices where a YAML file is expected."""
    given = [Path(place) for place in (options.config_dir, options.config_path) if place]
    groups = ["", *group_choices(), *(o.lstrip("+").partition("=")[0] for o in options.overrides)]
    name = f"{options.config_name}.yaml" if options.config_name else ""
    for place in (*given, config_folder("sweeps"), config_folder("conf")):
        for file in [place / name, *(f for g in groups for f in (place / g).glob("*.yaml"))]:
            if file.exists() and not (file.is_file() or file.is_dir()):
                raise ConfigError(f"{file}: is a pipe or a device, not a file")
    if options.config_name is not None and not options.config_name.strip():
        raise ConfigError("--config-name: needs a name; qsweep sweeps lists them")


def _is_multirun(arguments: Any) -> bool:
    """Whether the sweep file that is named wants several trials, and the command line no other."""
    from omegaconf import OmegaConf

    other = arguments.run or arguments.cfg or arguments.info or arguments.shell_completion
    if other or any(override.startswith("hydra.mode=") for override in arguments.overrides):
        return False
    places = [Path(arguments.config_dir)] if arguments.config_dir else []
    for place in (*places, config_folder("sweeps")):
        file = place / f"{arguments.config_name}.yaml"
        if file.is_file():
            try:
                return OmegaConf.select(OmegaConf.load(file), "hydra.mode") == "MULTIRUN"
            except Exception:  # Hydra says what is wrong with the file
                return False
    return False


def hide_in_files(folder: Path) -> None:
    """Take passwords out of what Hydra itself writes, where a person has switched that on."""
    for file in folder.glob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        shown = "\n".join(map(hidden_value, text.split("\n")))
        if shown != text:
            write_bytes(file, shown.encode())


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


def print_outcome(sweep: "Sweep") -> None:
    """Print a sweep's table, and where the rest of it is."""
    from qsweep.results.terminal import print_results

    print_results(sweep.shown, sweep.directory)
    for line in sweep.config.tracker.hints(sweep.folder):
        print(line)
    if (report := sweep.directory / "report.html").is_file():
        print(f"report: {report}")
