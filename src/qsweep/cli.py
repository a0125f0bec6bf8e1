"""``python -m qsweep``: hands the command line to Hydra, and its errors to people."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from qsweep.errors import ConfigError, QsweepError
from qsweep.schema import nearest

# What the sweep that Hydra ran came to; Hydra returns nothing through its own main.
_outcomes: list[Any] = []
_single: list[tuple[Any, list[str], str]] = []
# The session of a search, whose batches all belong to one sweep.
sessions: list[Any] = []
# Options that change no number do not belong in a sweep's name.
_NOT_IN_NAME = (
    *("hydra", "outputs_dir", "sweep", "tracking", "n_jobs", "timeout_s", "device"),
    *("search.trials", "search.batch", "search.storage", "search.study"),
)


def main(arguments: list[str] | None = None) -> int:
    """Run Hydra on the command line; returns the exit code.

    2: the configuration is invalid and nothing ran; 1: a trial failed or none finished; 0: the rest
    finished or were skipped.
    """
    sys.argv[1:] = sys.argv[1:] if arguments is None else arguments
    # Hydra raises instead of printing a page of its own and exiting with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        _hydra_main()
        for config, overrides, name in _single:
            run_composed([config], overrides, name)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    except QsweepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        from qsweep.store import disk_full, is_disk_full

        if is_disk_full(error):
            place = Path(error.filename or ".").parent
            print(f"error: {disk_full(place)}; what is finished is kept", file=sys.stderr)
            return 1
        if error.filename is None:
            raise
        print(
            f"error: {error.filename}: {error.strerror}; outputs_dir=DIR moves results",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return max((sweep.exit_code for sweep in _outcomes), default=0)


def _hydra_main() -> None:
    from hydra._internal.utils import _run_hydra, get_args_parser

    register_resolvers()
    parser = get_args_parser()
    arguments = parser.parse_args()
    # Hydra finds that out too, but only where nothing is wrong with the rest.
    arguments.multirun = arguments.multirun or _is_multirun(arguments)
    _run_hydra(
        args=arguments,
        args_parser=parser,
        task_function=run_one,
        config_path=str(folder("conf")),
        config_name="config",
    )


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
    """Without ``-m``: a sweep of one, run once Hydra is done, so that errors are ours to report."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    job = (config, list(hydra.overrides.task), hydra.job.config_name or "config")
    if hydra.mode == RunMode.MULTIRUN:  # another launcher than qsweep's, which wants the record
        return run_composed([config], *job[1:])[0]
    _single.append(job)
    return None


def run_composed(configs: list[Any], overrides: list[str], config_name: str) -> list[Any]:
    """Run composed configurations as one sweep, or as a batch of the search that is under way.

    Prints the sweep's table and remembers the outcome. Returns the record of each configuration.
    """
    from omegaconf import OmegaConf

    from qsweep.compose import plain
    from qsweep.sweep import command_line, run_sweep
    from qsweep.sweepfile import check_options

    resolved = [c if isinstance(c, dict) else plain(c, OmegaConf) for c in configs]
    check_options(resolved[0], _known_options(""))
    for config in resolved:
        if search := config.get("search"):
            # How a trial was found is no part of it, and a storage's URL may hold a password.
            config["search"] = {"fidelity": search["fidelity"]}
    if sessions:
        return sessions[-1].run_configs(resolved)
    name = resolved[0]["sweep"] or default_name(overrides, config_name)
    sweep = run_sweep(resolved, name, command_line(sys.argv[1:]))
    conclude(sweep)
    return [sweep.records[key] for key in sweep.asked]


def conclude(sweep: Any) -> None:
    """Print what a sweep came to, and remember it for the exit code."""
    from qsweep.table import print_results
    from qsweep.tracking import ui_line, ui_page

    print_results(sweep.shown, sweep.directory)
    if line := ui_line(sweep.config.tracking, sweep.config.outputs_dir):
        print(f"compare in the MLflow UI: {line}")
        if page := ui_page(sweep.config.tracking, sweep.directory, sweep.config.outputs_dir):
            print(f"and there: {page}")
    if (report := sweep.directory / "report.html").is_file():
        print(f"report: {report}")
    _outcomes.append(sweep)


def default_name(overrides: list[str], config_name: str) -> str:
    """A readable name made from what a sweep varies: ``quant-gptq-awq_bits-3-4-8``.

    The same command has the same name, so that it continues the same sweep.
    """
    from qsweep.config import key_of

    words = [o for o in overrides if not o.lstrip("+~").startswith(_NOT_IN_NAME)]
    parts = [config_name] if config_name != "config" else []
    parts += [re.sub(r"[^\w.]+", "-", word.lstrip("+~")).strip("-.") for word in sorted(words)]
    name = "_".join(parts) or "default"
    return name if len(name) <= 80 else f"{name[:71]}-{key_of(words)[:8]}"


def register_resolvers() -> None:
    """Teach OmegaConf the interpolations that qsweep's files use."""
    from omegaconf import OmegaConf

    from qsweep.pocket import MODEL_DIR

    def model_name(path: str) -> str:
        same = Path(path).expanduser().absolute() == MODEL_DIR
        return "pocket" if same else Path(path).absolute().name

    OmegaConf.register_new_resolver("qsweep.pocket", lambda: str(MODEL_DIR), replace=True)
    OmegaConf.register_new_resolver("qsweep.name", model_name, replace=True)
    OmegaConf.register_new_resolver("qsweep.basename", lambda p: Path(p).name, replace=True)


def folder(name: str) -> Path:
    """``conf`` or ``sweeps``: inside the package when installed, beside ``src`` in a checkout."""
    package = Path(__file__).parent
    for place in (package / name, package.parents[1] / name):
        if place.is_dir():
            return place
    raise ConfigError(f"{name}/ is missing from the installation; install qsweep again")


def explain(error: Exception) -> str:
    """One line for an error of Hydra or OmegaConf, naming the nearest right word."""
    if isinstance(error, QsweepError):
        return str(error)
    text = str(error).strip()
    if found := re.search(r"Could not override '([^']+)'", text):
        return _no_option(found.group(1))
    if found := re.search(r"Key '(\w+)' not in 'Qsweep\w+Config'", text):
        known = ("params", "when", "trials")
        return f"no option 'hydra.sweeper.{found.group(1)}'{nearest(found.group(1), known)}"
    if found := re.search(r"Could not find '([^']+)'", text):
        group, _, choice = found.group(1).rpartition("/")
        choices = [line.strip() for line in text.splitlines() if line.startswith("\t")]
        return f"{group}={choice}: no such choice{nearest(choice, choices)}"
    if found := re.search(r"Cannot find primary config '([^']+)'", text):
        names = [p.stem for place in ("sweeps", "conf") for p in folder(place).glob("*.yaml")]
        return f"--config-name={found.group(1)}: no such file{nearest(found.group(1), names)}"
    if found := re.search(r"parsing override '(.*?)'", text):
        return f"{found.group(1)!r} is not an override; write NAME=VALUE"
    if found := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{found.group(1)} has no value; give {found.group(1)}=…"
    return " ".join(text.split())


def _no_option(key: str) -> str:
    group, _, name = key.rpartition(".")
    if owners := [choice for choice, options in _options_of(group) if name in options]:
        choices = " or ".join(f"{group}={choice}" for choice in owners)
        return (
            f"{key}: only {choices} has this option; a sweep that has others, too, gives it under "
            "'when' in a file (sweeps/pareto.yaml)"
        )
    return f"no option {key!r}{nearest(key, _known_options(key))}"


def _known_options(key: str) -> list[str]:
    from omegaconf import OmegaConf

    names = [p.name for p in folder("conf").iterdir() if p.is_dir() and p.name != "hydra"]
    config = OmegaConf.load(folder("conf") / "config.yaml")
    names += [str(name) for name in config if name not in ("defaults", "hydra")]
    group, _, _ = key.rpartition(".")
    names += [f"{group}.{name}" for _, options in _options_of(group) for name in options]
    return sorted(set(names))


def _options_of(group: str) -> list[tuple[str, list[str]]]:
    """The choices of a configuration group with the names of their options."""
    from omegaconf import OmegaConf

    files = sorted((folder("conf") / group).glob("*.yaml")) if group else []
    return [
        (file.stem, [str(name) for name in OmegaConf.load(file) if name != "defaults"])
        for file in files
    ]
