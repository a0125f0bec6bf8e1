"""AWQ through AutoAWQ 0.2.9, archived, in an environment of its own. CPU and CUDA."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from qsweep.base.errors import IncompatibleTrial
from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.environments.choice import EnvChoice
from qsweep.quantizers.isolated.run import REVISION, Recipe, quantize
from qsweep.quantizers.packed import Sym, check_packing, check_values, resolve_sym, runtimes
from qsweep.text.calibration import CalibrationTokens

RECIPE = Recipe("run_autoawq", "autoawq", "awq")
# The types of its 0.2.9 that are language models with layers AWQ's format holds.
_MODEL_TYPES = frozenset(
    "aquila baichuan bloom cohere exaone falcon gemma gemma2 gpt_bigcode gpt_neox gptj internlm2 "
    "llama minicpm minicpm3 mistral mpt opt phi3 qwen qwen2 qwen3 stablelm starcoder2".split()
)


@dataclass(frozen=True)
class AutoAWQ:
    """AWQ as the package that most AWQ checkpoints were made with does it.

    It writes 4 bits with zero points, in GEMM layout, and nothing else.
    """

    bits: int = 4
    group_size: int = 128
    sym: Sym = None
    env: EnvChoice = field(default_factory=EnvChoice)

    method: ClassVar[str] = "awq"
    backend: ClassVar[str] = "autoawq"
    uses_calibration: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_values(self.bits, self.group_size, self.sym)

    def options(self) -> dict[str, Any]:
        """The effective options."""
        sym = resolve_sym(self.sym, auto=False)
        return {"bits": self.bits, "group_size": self.group_size, "sym": sym}

    def version(self) -> str:
        """Versions of the environment, and the revision of what is done around it."""
        return f"{self.env.version(RECIPE.environment)}+{REVISION}"

    def check(self, model: ModelFacts) -> None:
        """Refuse what AutoAWQ cannot do, and a missing environment. Raises IncompatibleTrial."""
        # What no backend can do is said before what this one cannot: it must not name another.
        check_packing("autoawq", "awq", 4, self.group_size, model, whole=True)
        if self.bits != 4:
            raise IncompatibleTrial(
                f"autoawq writes 4 bits only, not {self.bits}; "
                "quant.backend=gptqmodel and native have 2, 3 and 8"
            )
        if self.options()["sym"]:
            raise IncompatibleTrial("autoawq's GEMM layout has zero points: sym=false")
        if model.model_type not in _MODEL_TYPES:
            raise IncompatibleTrial(
                f"autoawq does not know {model.model_type}; quant.backend=native or gptqmodel may"
            )
        self.env.require(RECIPE.environment)

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Write an AWQ checkpoint in GEMM layout."""
        served = runtimes("awq", self.bits, self.group_size, sym=False)
        options = self.options()
        return quantize(RECIPE, self.env, options, model, calibration, out, progress, served)
