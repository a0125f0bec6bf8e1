"""Making an environment: whole or not at all.

A virtual environment cannot be moved, so it is made in its place; it counts once its manifest is
written, last of all. What has none is half-made: the next creation, or ``remove``, sweeps it away.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qsweep.base.errors import QsweepError
from qsweep.base.files import read_json, write_json
from qsweep.base.locks import FileLock
from qsweep.base.typed_json import convert_or_none
from qsweep.quantizers.environments.install import InstallFailed, Step, installer_steps, run_step
from qsweep.quantizers.environments.interpreter import ask, find_base
from qsweep.quantizers.environments.spec import EnvSpec

MANIFEST = "qsweep-env.json"
State = Literal["absent", "ready", "incomplete", "outdated"]
# Called with the step that is under way and the installer's latest line.
Notice = Callable[[str, str], None]


@dataclass(frozen=True)
class _Recorded:
    """What an environment's manifest must hold, beside others."""

    python: str
    packages: dict[str, Any]


@dataclass(frozen=True)
class Environment:
    """An environment's place on disk, made or not."""

    spec: EnvSpec
    folder: Path
    """The folder of all environments."""

    @property
    def path(self) -> Path:
        """Its own folder."""
        return self.folder / self.spec.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"

    @property
    def log(self) -> Path:
        """What the installer printed."""
        return self.folder / f"{self.spec.name}.log"

    @property
    def lock(self) -> Path:
        """The file that keeps two from making it at once."""
        return self.folder / f".{self.spec.name}.lock"

    def manifest(self) -> dict[str, Any] | None:
        """What was said of it when it was finished; None if it never was."""
        try:
            content = read_json(self.path / MANIFEST)
        except (OSError, ValueError):
            return None
        return content if convert_or_none(_Recorded, content) is not None else None

    def state(self) -> State:
        """Whether it is there, whole, and made from today's pins."""
        manifest = self.manifest()
        if manifest is None or not self.python.exists():
            return "incomplete" if self.path.exists() else "absent"
        return "ready" if manifest.get("spec") == self.spec.fingerprint() else "outdated"


def create(
    environment: Environment,
    *,
    python: Path | None = None,
    installer: str = "auto",
    notice: Notice = lambda step, line: None,
) -> bool:
    """Make an environment unless it is ready; returns whether it was made now.

    Args:
        environment: Which one, and where.
        python: The interpreter to make it with; by default the first that suits.
        installer: ``pip``, ``uv``, or ``auto`` to choose.
        notice: Told of every step and of the installer's lines.

    Raises:
        BackendUnavailable: No Python here will do.
        QsweepError: What went wrong in one line, and where the log is; nothing is left behind.
    """
    spec = environment.spec
    base = find_base(spec, python)
    with FileLock(environment.lock, notice=lambda line: notice("wait", line)):
        if environment.state() == "ready":
            return False
        _check_disk(environment)
        for doomed in environment.folder.glob(f".{spec.name}.*.removed"):
            shutil.rmtree(doomed, ignore_errors=True)
        _remove(environment.path)
        started = time.time()
        try:
            environment.log.write_bytes(b"")
            steps = installer_steps(spec, base.path, environment.path, installer)
            for step in [*steps, _check_step(environment)]:
                run_step(step, environment.log, notice)
            _seal(environment, started)
        except InstallFailed as error:
            raise QsweepError(
                f"environment {spec.name} was not created: {error}; log: {environment.log}"
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise QsweepError(_no_space(environment)) from error
            raise QsweepError(
                f"environment {spec.name} was not created: {error.strerror or error} "
                f"({error.filename}); log: {environment.log}"
            ) from error
        finally:
            if environment.manifest() is None:
                _remove(environment.path)
    return True


def remove(environment: Environment) -> bool:
    """Delete an environment, whole or half-made; returns whether there was one."""
    with FileLock(environment.lock):
        there = environment.path.exists()
        _remove(environment.path)
        environment.log.unlink(missing_ok=True)
    return there


def check(environment: Environment) -> list[str]:
    """What is wrong with an environment, one line each; nothing, if it works.

    Its interpreter runs, its packages are those it was made with, and its library can be imported.
    """
    name = environment.spec.name
    state = environment.state()
    if state != "ready":
        what = {
            "absent": "is not there",
            "incomplete": "was never finished",
            "outdated": "was made from other pins",
        }[state]
        return [f"{name} {what}: qsweep env create {environment.spec.called}"]
    try:
        found = ask(environment.python).packages
    except QsweepError as error:
        return [str(error)]
    recorded = (environment.manifest() or {}).get("packages", {})
    problems = [
        f"{name}: {package} is {found.get(package, 'missing')}, was {version}"
        for package, version in recorded.items()
        if found.get(package) != version
    ]
    if environment.spec.imports and not problems:
        try:
            run_step(_check_step(environment), environment.log, lambda step, line: None)
        except InstallFailed as error:
            problems.append(f"{name}: {error}; log: {environment.log}")
    return problems


def _check_step(environment: Environment) -> Step:
    module = environment.spec.imports
    code = f"import {module}" if module else "pass"
    return Step("check", [str(environment.python), "-I", "-W", "ignore", "-c", code])


def _seal(environment: Environment, started: float) -> None:
    found = ask(environment.python)
    write_json(
        environment.path / MANIFEST,
        {
            "spec": environment.spec.fingerprint(),
            "library": environment.spec.library,
            "python": found.text,
            "packages": dict(sorted(found.packages.items())),
            "seconds": round(time.time() - started, 1),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )


def _check_disk(environment: Environment) -> None:
    try:
        environment.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(environment.folder).free / 1e9
    except OSError as error:
        raise QsweepError(
            f"{environment.folder}: cannot be written ({error.strerror or error})"
        ) from error
    if free < environment.spec.disk_gb:
        raise QsweepError(f"{_no_space(environment)} ({free:.1f} GB are free)")


def _no_space(environment: Environment) -> str:
    return (
        f"environment {environment.spec.name} takes about {environment.spec.disk_gb:g} GB, which "
        f"the disk of {environment.folder} has not got; free some, or choose another outputs_dir"
    )


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        # Renamed first: whatever comes between, nothing half-deleted stands in its place.
        doomed = path.with_name(f".{path.name}.{os.getpid()}.removed")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
