"""A quantizer of your own in an environment of its own: a worker script and two YAML files."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from qsweep.base.errors import ConfigError, IncompatibleTrial, QsweepError
from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.formats.container import container
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.environments.choice import EnvChoice
from qsweep.quantizers.isolated.run import Recipe, quantize
from qsweep.text.calibration import CalibrationTokens


@dataclass(frozen=True)
class Custom:
    """What a YAML file says of a worker.

    Attributes:
        method: What tables call it.
        worker: The script; when it changes, artifacts are made anew.
        writes: The container of what it saves: gptq, awq, compressed-tensors or another package's.
        settings: What it is told; ``bits`` and ``group_size`` fill the columns of that name.
        runtimes: What can serve its artifacts.
        env: Its environment; ``name`` must be given.
    """

    method: str
    worker: Path
    writes: str
    settings: dict[str, Any] = field(default_factory=dict)
    runtimes: tuple[str, ...] = ()
    env: EnvChoice = field(default_factory=EnvChoice)

    backend: ClassVar[str] = "custom"
    uses_calibration: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "worker", Path(self.worker).expanduser().absolute())
        if not self.worker.is_file():
            raise ConfigError(f"quant.worker={self.worker}: no such file")
        try:
            known = container(self.writes)
        except QsweepError as error:
            raise ConfigError(f"quant.writes={self.writes}: {error}") from error
        # Where things lie in a GGUF file, only our own conversion of the model tells.
        if not known.counts_files or known.name == "gguf":
            raise ConfigError(
                f"quant.writes={self.writes}: a worker saves gptq, awq or compressed-tensors, or "
                "another package's container"
            )
        if not self.env.name:
            raise ConfigError("quant.env.name: which environment the worker runs in has no value")

    def options(self) -> dict[str, Any]:
        """The settings and the format."""
        return {**self.settings, "writes": self.writes}

    def version(self) -> str:
        """Versions of the environment, and a hash of the worker."""
        script = hashlib.sha256(self.worker.read_bytes()).hexdigest()[:12]
        return f"{self.env.version('')}+{script}"

    def check(self, model: ModelFacts) -> None:
        """Refuse a model without linear layers, and a missing environment."""
        if not model.linears:
            raise IncompatibleTrial(f"{self.method}: no linear layers found in {model.name}")
        self.env.require("")

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Run the worker and take over what it saves."""
        recipe = Recipe(str(self.worker), self.method, self.writes)
        return quantize(
            recipe, self.env, self.settings, model, calibration, out, progress, self.runtimes
        )
