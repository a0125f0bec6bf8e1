"""AutoRound (SignRound) through Intel's package, in an environment of its own. CPU and CUDA.

Cheng et al. 2023, https://arxiv.org/abs/2309.05516: rounding and clipping of each weight are learnt
by signed gradient descent on the layer's output.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from qsweep.artifact import Artifact
from qsweep.env.choice import EnvChoice
from qsweep.errors import ConfigError, IncompatibleTrial
from qsweep.quantizers import CalibrationTokens, ModelFacts, Progress, SourceModel, silent
from qsweep.quantizers.foreign.run import REVISION, Recipe, quantize
from qsweep.quantizers.packed import Sym, check_packing, check_values, resolve_sym, runtimes

_ENVIRONMENT = "autoround"


@dataclass(frozen=True)
class AutoRound:
    """AutoRound, saved in the format that ``export`` names.

    ``sym`` auto means true for gptq and false for awq. AWQ's format takes 4 bits.
    """

    bits: int = 4
    group_size: int = 128
    sym: Sym = None
    export: Literal["gptq", "awq"] = "gptq"
    iters: int = 200
    seed: int = 0
    env: EnvChoice = field(default_factory=EnvChoice)

    method: ClassVar[str] = "autoround"
    backend: ClassVar[str] = "auto-round"
    uses_calibration: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_values(self.bits, self.group_size, self.sym)
        if self.iters < 1:
            raise ConfigError(f"quant.iters={self.iters}: at least 1; quant=rtn rounds to nearest")

    def options(self) -> dict[str, Any]:
        """The effective options."""
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": resolve_sym(self.sym, auto=self.export == "gptq"),
            "export": self.export,
            "iters": self.iters,
            "seed": self.seed,
        }

    def version(self) -> str:
        """Versions of the environment, and the revision of what is done around it."""
        return f"{self.env.version(_ENVIRONMENT)}+{REVISION}"

    def check(self, model: ModelFacts) -> None:
        """Refuse what the format cannot hold, and a missing environment. Raises IncompatibleTrial."""
        sym = self.options()["sym"]
        if self.export == "awq" and self.bits != 4:
            raise IncompatibleTrial(f"autoround exports AWQ at 4 bits only, not {self.bits}")
        if self.export == "gptq" and not sym:
            raise IncompatibleTrial(
                "autoround exports GPTQ in version 1, which loses zero points of 0: sym=true, "
                "or quant.export=awq"
            )
        check_packing("autoround", self.export, self.bits, self.group_size, model)
        self.env.require(_ENVIRONMENT)

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Write a GPTQ or AWQ checkpoint."""
        options = self.options()
        recipe = Recipe("run_autoround", _ENVIRONMENT, self.export)
        served = runtimes(self.export, self.bits, self.group_size, options["sym"])
        return quantize(recipe, self.env, options, model, calibration, out, progress, served)
