"""Running pip or uv for an environment, and saying in one line why it failed."""

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qsweep.base.errors import ConfigError
from qsweep.base.schema import nearest
from qsweep.base.secrets import hidden, hidden_value
from qsweep.launch import tree
from qsweep.quantizers.environments.interpreter import clean_environment
from qsweep.quantizers.environments.spec import EnvSpec

INSTALLERS = ("auto", "pip", "uv")
_PIP_INDEX = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONFIG_FILE")
# What pip and uv also take in a file of requirements.
_INDEX_OPTIONS = ("-i", "--index-url", "--extra-index-url", "-f", "--find-links")
# What the installer's last lines mean, the more telling first.
_REASONS = (
    (r"No space left on device|Disk quota exceeded", "no space left on the disk"),
    (
        r"Temporary failure in name resolution|Name or service not known|Failed to establish a new"
        r" connection|Connection refused|ConnectTimeoutError|Network is unreachable|dns error"
        r"|ProxyError|error sending request|network was disabled",
        "the package index cannot be reached",
    ),
    (
        r"requires a different Python|Requires-Python|does not satisfy Python",
        "a package does not run on this Python",
    ),
    (r"No matching distribution found for (\S+)", "the package index has no {0}"),
    (r"Because (\S+) was not found|there is no version of (\S+)", "the package index has no {0}"),
    (r"Failed building wheel for (\S+)", "{0} does not build"),
    (r"Failed to build [`']?([\w.=-]+)", "{0} does not build"),
    (
        r"metadata-generation-failed|subprocess-exited-with-error|build backend returned an error",
        "a package does not build",
    ),
    (r"ResolutionImpossible|No solution found", "its pins contradict one another"),
    (r"(?:ModuleNotFoundError|ImportError): (.+)", "its library cannot be imported ({0})"),
)
_TAIL_BYTES = 65536


class InstallFailed(Exception):
    """A step ended badly; the text says why, as far as its output tells."""


@dataclass(frozen=True)
class Step:
    """One command of an installation, and what a person calls it.

    ``requirements`` are lines of a file that it reads besides: everybody may see its command.
    """

    name: str
    command: list[str]
    requirements: tuple[str, ...] = ()


def installer_steps(spec: EnvSpec, base: Path, path: Path, installer: str = "auto") -> list[Step]:
    """The commands that make an environment.

    Args:
        spec: What is in it.
        base: The Python that it is made with.
        path: Its folder.
        installer: ``pip``, ``uv``, or ``auto`` to choose.

    Raises:
        ConfigError: There is no such installer, or uv is asked for and not here.
    """
    if installer not in INSTALLERS:
        raise ConfigError(
            f"--installer {installer}: no such installer{nearest(installer, INSTALLERS)}"
        )
    uv = find_uv()
    if installer == "uv" and uv is None:
        raise ConfigError("--installer uv: uv is not installed; take pip")
    if installer == "auto" and uv is not None and pip_has_an_index():
        uv = None
    if uv is not None and installer != "pip":
        make = [uv, "venv", "--quiet", "--python", str(base), str(path)]
        install = [uv, "pip", "install", "--python", str(path / "bin" / "python")]
    else:
        make = [str(base), "-m", "venv", str(path)]
        pip = [str(path / "bin" / "python"), "-m", "pip"]
        if importlib.util.find_spec("pip") is not None:
            # Qsweep's own pip does it from outside: setting one up in there takes ten seconds.
            make.insert(3, "--without-pip")
            pip = [sys.executable, "-m", "pip", "--python", str(path / "bin" / "python")]
        install = [*pip, "install", "--disable-pip-version-check", "--no-input"]
        # uv's habit, too: most modules of what is installed are never imported.
        install += ["--progress-bar", "off", "--no-compile"]
    steps = [Step("make", make)]
    for number, line in enumerate(spec.install):
        name = f"install {number + 1} of {len(spec.install)}"
        words, requirements = _off_the_command_line(shlex.split(line))
        steps.append(Step(name, [*install, *words], requirements))
    return steps


def _off_the_command_line(words: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """An installer's arguments without those that hold a password, and these as requirements."""
    kept: list[str] = []
    moved: list[str] = []
    for word in words:
        if hidden_value(word) == word:
            kept.append(word)
        elif kept and kept[-1] in _INDEX_OPTIONS:
            moved.append(f"{kept.pop()} {word}")
        else:
            moved.append(word)
    return kept, tuple(moved)


def find_uv() -> str | None:
    """uv's path, if it is installed: beside this Python or on the PATH."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.is_file() else shutil.which("uv")


def pip_has_an_index() -> bool:
    """Whether pip is told of an index or of packages on disk, which uv would not look at."""
    if any(os.environ.get(name) for name in _PIP_INDEX):
        return True
    done = subprocess.run(  # noqa: S603 - fixed arguments
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return re.search(r"(index-url|find-links)=", done.stdout) is not None


def run_step(step: Step, log: Path, notice: Callable[[str, str], None]) -> None:
    """Run one command into the log, telling of its lines; its processes end with it.

    Raises:
        InstallFailed: It did not end well.
    """
    notice(step.name, "")
    with log.open("ab") as file, _requirements_file(step) as more:
        shown = [*map(hidden_value, step.command), *map(hidden_value, step.requirements)]
        file.write(f"$ {shlex.join(shown)}\n".encode())
        file.flush()
        begin = file.tell()
        process = subprocess.Popen(  # noqa: S603 - commands from the environment's own file
            [*step.command, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=clean_environment() | {"PYTHONUNBUFFERED": "1"},
            cwd=log.parent,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                text = hidden(line.decode(errors="replace"))
                file.write(text.encode())
                file.flush()
                if text := text.strip():
                    notice(step.name, text)
            status = process.wait()
        finally:
            if process.poll() is None:
                tree.kill_group(process.pid)
                process.wait()
    if status:
        raise InstallFailed(explain(log, begin, status))


@contextlib.contextmanager
def _requirements_file(step: Step) -> Iterator[list[str]]:
    """The arguments that name the file of a step's requirements, which nobody else may read."""
    if not step.requirements:
        yield []
        return
    with tempfile.NamedTemporaryFile("w", prefix="qsweep-", suffix=".txt") as file:
        file.write("\n".join(step.requirements) + "\n")
        file.flush()
        yield ["-r", file.name]


def explain(log: Path, begin: int, status: int) -> str:
    """One line for what an installer wrote after byte ``begin`` of its log."""
    with log.open("rb") as file:
        file.seek(max(begin, file.seek(0, 2) - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    for pattern, meaning in _REASONS:
        if found := re.search(pattern, text):
            return meaning.format(*(group.rstrip(".,`") for group in found.groups() if group))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if status < 0:
        return f"the installer was killed by signal {-status}"
    return lines[-1][:200] if lines else f"the installer ended with status {status}"
