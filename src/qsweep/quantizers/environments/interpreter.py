"""Finding a Python for an environment, and asking one what it is and has."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qsweep.base.errors import BackendUnavailable, QsweepError
from qsweep.quantizers.environments.spec import EnvSpec

# Runs in any Python 3; imports nothing that is not in the standard library.
_ASK = """
import json, sys
from importlib.metadata import distributions
found = {}
for d in distributions():
    name = d.metadata["Name"]
    if name:
        found[name.lower().replace("_", "-")] = d.version
print(json.dumps({"version": list(sys.version_info[:3]), "packages": found}))
"""
# Settings of the calling environment that would leak into another one.
_OWN = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "PYTHONSAFEPATH",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
)
_NEWEST_MINOR = 15


@dataclass(frozen=True)
class Interpreter:
    """A Python and the distributions that are installed beside it."""

    path: Path
    version: tuple[int, int, int]
    packages: dict[str, str]

    @property
    def text(self) -> str:
        """Its version as people write it."""
        return ".".join(map(str, self.version))


@lru_cache(maxsize=32)
def ask(path: Path) -> Interpreter:
    """What an interpreter is and has: a tenth of a second, and no library is imported.

    Raises:
        QsweepError: It is missing, or does not run.
    """
    try:
        done = subprocess.run(  # noqa: S603 - an interpreter that the user or this project named
            [str(path), "-I", "-c", _ASK],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=clean_environment(),
        )
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "does not run"
        raise QsweepError(f"{path}: no usable Python ({why})") from error
    major, minor, micro = answer["version"]
    return Interpreter(path, (major, minor, micro), answer["packages"])


def find_base(spec: EnvSpec, given: Path | None = None) -> Interpreter:
    """A Python to make the environment with: the given one, qsweep's own, or one on the PATH.

    Raises:
        BackendUnavailable: None has a version that will do.
    """
    if given is not None:
        found = ask(given)
        if not spec.accepts(found.version[:2]):
            raise BackendUnavailable(
                f"{spec.name} needs Python {spec.python}, but {given} is {found.text}"
            )
        return found
    tried = []
    for path in _candidates():
        try:
            found = ask(path)
        except QsweepError:  # pyenv's shims exist for versions that do not
            continue
        if spec.accepts(found.version[:2]):
            return found
        tried.append(found.text)
    raise BackendUnavailable(
        f"{spec.name} needs Python {spec.python}; here are {', '.join(dict.fromkeys(tried))}: "
        f"qsweep env create {spec.called} --python PATH"
    )


def clean_environment() -> dict[str, str]:
    """This process's environment variables without those that point into its own packages."""
    return {k: v for k, v in os.environ.items() if k not in _OWN} | {"PYTHONNOUSERSITE": "1"}


def _candidates() -> list[Path]:
    # Qsweep's own first: it is sure to work. Of a virtual environment, what it was made from.
    own = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    names = [f"python3.{minor}" for minor in range(_NEWEST_MINOR, 8, -1)]
    found = [shutil.which(name) for name in names]
    return [own if own.exists() else Path(sys.executable), *(Path(path) for path in found if path)]
