"""``quant.env``: which environment a trial's quantizer works in."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from qsweep.base.errors import BackendUnavailable, ConfigError, QsweepError
from qsweep.base.files import shown
from qsweep.base.progress import Progress, silent
from qsweep.quantizers.environments.create import Environment, create
from qsweep.quantizers.environments.interpreter import ask, find_base
from qsweep.quantizers.environments.spec import EnvSpec, load_spec

# Libraries beside the quantizer's own whose version changes what it computes.
_COUNTED = ("torch", "transformers")


@dataclass(frozen=True)
class EnvChoice:
    """Where a quantizer's worker runs. None of this determines what it makes.

    Attributes:
        name: The environment, or a YAML file that describes one; by default the backend's own.
        folder: Where environments are made.
        device: The trial's device.
        python: The interpreter of an environment of your own.
        create: Whether a missing environment is made in the middle of a sweep.
        timeout_s: Seconds after which the worker is ended.
    """

    name: str | None = None
    folder: Path = Path("outputs/envs")
    device: str = "auto"
    python: Path | None = None
    create: bool = False
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise ConfigError(f"quant.env.timeout_s={self.timeout_s}: seconds above 0, or null")
        # A trial works in a scratch folder, where a relative path would mean another place.
        for name in ("folder", "python"):
            if (path := getattr(self, name)) is None:
                continue
            try:
                object.__setattr__(self, name, Path(path).expanduser().absolute())
            except RuntimeError as error:  # ~nobody
                raise ConfigError(f"quant.env.{name}={path}: {error}") from error

    def spec(self, default: str) -> EnvSpec:
        """The chosen environment, or the backend's own. Raises ConfigError."""
        return load_spec(self.name or default)

    def environment(self, default: str) -> Environment:
        """Where it is or would be."""
        return Environment(self.spec(default), self.folder)

    def version(self, default: str) -> str:
        """The versions that count: of the library, torch and transformers."""
        spec = self.spec(default)
        try:
            found = ask(self.python).packages if self.python else spec.pins()
        except QsweepError:
            return "missing"
        versions = [f"{name} {found[name]}" for name in (spec.library, *_COUNTED) if name in found]
        return ", ".join(versions) or spec.fingerprint()

    def require(self, default: str) -> None:
        """Refuse a trial whose environment is not there, naming the command that makes it.

        Raises:
            BackendUnavailable: It is missing and may not be made, or the given one lacks the library.
        """
        environment = self.environment(default)
        spec = environment.spec
        if self.python is not None:
            _check_own(self.python, spec)
            return
        state = environment.state()
        if state == "ready":
            return
        if self.create:
            find_base(spec)
            return
        what = {"incomplete": "was never finished", "outdated": "was made from other pins"}
        raise BackendUnavailable(
            f"{spec.library} needs an environment of its own, which "
            f"{what.get(state, 'is not there')}: {self.command(default)} "
            "(or quant.env.create=true, or quant.env.python=PATH)"
        )

    def command(self, default: str) -> str:
        """What to type to create it."""
        usual = shown(self.folder) == "outputs/envs"
        place = "" if usual else f" --folder {shlex.quote(str(self.folder))}"
        return f"qsweep env create {self.name or default}{place}"

    def interpreter(self, default: str, progress: Progress = silent) -> Path:
        """The interpreter to run the worker with; the environment is made now where that is allowed.

        Raises:
            BackendUnavailable: It is missing and may not be made.
            QsweepError: It cannot be made.
        """
        self.require(default)
        if self.python is not None:
            return self.python
        environment = self.environment(default)
        if environment.state() != "ready":
            label = f"environment {environment.spec.name}"
            create(environment, notice=lambda step, _: progress(f"{label}: {step}", None))
        return environment.python


def _check_own(python: Path, spec: EnvSpec) -> None:
    try:
        found = ask(python)
    except QsweepError as error:
        raise BackendUnavailable(f"quant.env.python={error}") from error
    if not spec.accepts(found.version[:2]):
        raise BackendUnavailable(
            f"quant.env.python={python}: {spec.name} needs Python {spec.python}, not {found.text}"
        )
    if spec.library.lower().replace("_", "-") not in found.packages:
        raise BackendUnavailable(
            f"quant.env.python={python}: {spec.library} is not installed there"
        )
