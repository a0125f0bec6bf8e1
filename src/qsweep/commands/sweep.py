"""``qsweep -m …``: hands the command line to Hydra, and its errors to people."""

import copy
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.files import write_bytes
from qsweep.base.secrets import hidden_value
from qsweep.base.shipped import choices, folder
from qsweep.commands.entry import Parser, command
from qsweep.commands.explain import explain, refused_option
from qsweep.sweep.option_names import chosen_quantizers, known_options
from qsweep.sweep.overrides import acceptable, is_option

if TYPE_CHECKING:
    from qsweep.results.record import Record
    from qsweep.sweep.compose import Composed
    from qsweep.sweep.session import Session, Sweep

# Options that change no number do not belong in a sweep's name.
_NOT_IN_NAME = (
    *("hydra", "outputs_dir", "sweep", "tracking", "n_jobs", "timeout_s", "device"),
    *("search.trials", "search.batch", "search.storage", "search.study"),
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
        _run_hydra(run, parser().parse_intermixed_args(arguments))
    except KeyboardInterrupt as error:
        what = "ended by SIGTERM" if error.args == ("SIGTERM",) else "interrupted"
        print(f"{what}; the same command goes on where it stopped", file=sys.stderr)
        raise
    except ConfigError:
        raise
    except OSError as error:
        from qsweep.base.disk import disk_full, is_disk_full, what_failed

        if is_disk_full(error):
            place = Path(error.filename or ".").parent
            raise QsweepError(f"{disk_full(place)}; what is finished is kept") from error
        if error.filename is None:
            raise
        hint = "" if str(error.filename).endswith(".yaml") else "; outputs_dir=DIR moves results"
        raise ConfigError(f"{error.filename}: {what_failed(error)}{hint}") from error
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
        self._single: tuple[Any, Any, str] | None = None

    @property
    def command(self) -> str:
        """What was typed, for the records."""
        from qsweep.sweep.session import command_line

        return command_line(self._arguments)

    def __call__(self, config: Any) -> "Record | None":
        """Keep the configuration of a command line without ``-m``, for :meth:`run_single`.

        Within a multirun of another launcher than qsweep's it is run at once, and returns its record.
        """
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra = HydraConfig.get()
        # As a list, interpolations in it are resolved, which may fail: not here, where Hydra prints that.
        overrides, name = hydra.overrides.task, hydra.job.config_name or "config"
        if hydra.output_subdir:
            hide_in_files(Path(hydra.runtime.output_dir) / hydra.output_subdir)
        if hydra.mode == RunMode.MULTIRUN:
            hide_in_files(Path(hydra.sweep.dir))  # another sweeper's multirun.yaml
            return self.run_composed([config], list(overrides), name)[0]
        self._single = (config, overrides, name)
        return None

    def run_single(self) -> None:
        """Run what was kept, now that Hydra is done and errors are ours to report."""
        if self._single is not None:
            config, overrides, name = self._single
            self.run_composed([config], list(overrides), name)

    def run_composed(
        self, configs: Sequence[Any], overrides: list[str], config_name: str
    ) -> "list[Record]":
        """Run configurations as one sweep, or as a batch of the search that is under way.

        Returns the record of each configuration.
        """
        from qsweep.sweep.config import sweep_config
        from qsweep.sweep.session import run_sweep

        resolved = checked(configs)
        self.began = True
        if self.session is not None:
            return self.session.run_configs(resolved)
        name = sweep_config(resolved[0]).name or default_name(overrides, config_name)
        sweep = run_sweep(resolved, name, self.command)
        self.conclude(sweep)
        return [sweep.records[key] for key in sweep.asked]

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
        options.overrides = [acceptable(one, choices()) for one in options.overrides]
        # Hydra finds that out too, but only where nothing is wrong with the rest.
        options.multirun = options.multirun or _is_multirun(options)
        _compose_and_run(run, options)
        run.run_single()
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
                    config_path=str(folder("conf")),
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
        raise ConfigError("--config-name: needs a name; qsweep sweeps lists them")


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


def hide_in_files(folder: Path) -> None:
    """Take passwords out of what Hydra itself writes, where a person has switched that on."""
    for file in folder.glob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        shown = "\n".join(map(hidden_value, text.split("\n")))
        if shown != text:
            write_bytes(file, shown.encode())


def checked(configs: Sequence[Any]) -> list["Composed"]:
    """Composed configurations with all that is interpolated filled in, as one sweep may have them.

    Raises:
        ConfigError: an option that there is none, or two values of what a sweep has one of.
    """
    from omegaconf import OmegaConf

    from qsweep.search.settings import search_config
    from qsweep.search.sweep_file import check_options
    from qsweep.sweep.compose import Composed, plain
    from qsweep.sweep.config import check_one_sweep

    resolved = [c if isinstance(c, Composed) else plain(c, OmegaConf) for c in configs]
    check_options(resolved[0], known_options(""))
    for config in resolved:
        if search := config.get("search"):
            # How a trial was found is no part of it.
            config["search"] = {"fidelity": search_config(search).fidelity}
            config.written["search"] = dict(config["search"])
    check_one_sweep(resolved)
    return resolved


def print_outcome(sweep: "Sweep") -> None:
    """Print a sweep's table, and where the rest of it is."""
    from qsweep.results.terminal import print_results
    from qsweep.tracking import ui_line, ui_page

    print_results(sweep.shown, sweep.directory)
    if line := ui_line(sweep.config.tracking, sweep.config.outputs_dir):
        print(f"compare in the MLflow UI: {line}")
        if page := ui_page(sweep.config.tracking, sweep.directory, sweep.config.outputs_dir):
            print(f"and there: {page}")
    if (report := sweep.directory / "report.html").is_file():
        print(f"report: {report}")


def default_name(overrides: list[str], config_name: str) -> str:
    """A readable name made from what a sweep varies: ``quant-gptq-awq_bits-3-4-8``.

    The same command has the same name, so that it continues the same sweep.
    """
    from qsweep.base.keys import key_of

    words = [hidden_value(o) for o in overrides if not o.lstrip("+~").startswith(_NOT_IN_NAME)]
    parts = [config_name] if config_name != "config" else []
    parts += sorted(words, key=lambda word: word.removeprefix("++"))
    parts = [re.sub(r"[^\w.]+", "-", part.lstrip("+~")).strip("-.") for part in parts]
    name = "_".join(filter(None, parts)) or "default"
    # Of folders' names, the bytes are limited: a letter may have four.
    if len(name) > 80 or len(name.encode()) > 200:
        start = name.encode()[:180].decode(errors="ignore")[:71]
        name = f"{start}-{key_of(words)[:8]}"
    return name


def register_resolvers() -> None:
    """Teach OmegaConf the interpolations that qsweep's files use."""
    from omegaconf import OmegaConf

    from qsweep.models.tiny import MODEL_DIR

    def model_name(path: str) -> str:
        same = Path(path).expanduser().absolute() == MODEL_DIR
        return "pocket" if same else Path(path).absolute().name

    def hydra_dir(outputs: Any) -> str:
        # Hydra makes this folder before anybody has looked at the configuration.
        return f"{outputs}/.hydra" if isinstance(outputs, str) and outputs.strip() else "."

    OmegaConf.register_new_resolver("qsweep.hydra_dir", hydra_dir, replace=True)
    OmegaConf.register_new_resolver("qsweep.pocket", lambda: str(MODEL_DIR), replace=True)
    OmegaConf.register_new_resolver("qsweep.name", model_name, replace=True)
    OmegaConf.register_new_resolver("qsweep.basename", lambda p: Path(p).name, replace=True)
