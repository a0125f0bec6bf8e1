"""GPTQ through AutoGPTQ 0.7.1, archived, in an environment of its own. CUDA only."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from qsweep.base.errors import IncompatibleTrial
from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.models.devices import resolve_device
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.environments.choice import EnvChoice
from qsweep.quantizers.isolated.run import REVISION, Recipe, quantize
from qsweep.quantizers.packed import (
    Sym,
    check_damp,
    check_packing,
    check_values,
    resolve_sym,
    runtimes,
)
from qsweep.text.calibration import CalibrationTokens

RECIPE = Recipe("run_auto_gptq", "auto_gptq", "gptq", dtypes=("float16", "bfloat16"))
# The types of its 0.7.1 that are language models.
_MODEL_TYPES = frozenset(
    "baichuan bloom codegen deci falcon gemma gpt2 gpt_bigcode gpt_neox gptj internlm llama "
    "longllama mistral moss mpt opt phi qwen qwen2 stablelm_epoch xverse yi".split()
)


@dataclass(frozen=True)
class AutoGPTQ:
    """GPTQ as the package that most GPTQ checkpoints were made with does it.

    ``act_group_aware`` is GPTQModel's and has no effect here.
    """

    bits: int = 4
    group_size: int = 128
    desc_act: bool = False
    act_group_aware: bool = False
    sym: Sym = None
    damp_percent: float = 0.05
    env: EnvChoice = field(default_factory=EnvChoice)

    method: ClassVar[str] = "gptq"
    backend: ClassVar[str] = "auto_gptq"
    uses_calibration: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_values(self.bits, self.group_size, self.sym)
        check_damp(self.damp_percent)

    def options(self) -> dict[str, Any]:
        """The effective options."""
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "desc_act": self.desc_act,
            "sym": resolve_sym(self.sym, auto=True),
            "damp_percent": self.damp_percent,
        }

    def version(self) -> str:
        """Versions of the environment, and the revision of what is done around it."""
        return f"{self.env.version(RECIPE.environment)}+{REVISION}"

    def check(self, model: ModelFacts) -> None:
        """Refuse what AutoGPTQ cannot do, a CPU, and a missing environment.

        Raises:
            IncompatibleTrial: With the reason.
        """
        # What no backend can do is said before what this one cannot: it must not name another.
        check_packing("auto_gptq", "gptq", self.bits, self.group_size, model, whole=True)
        if not resolve_device(self.env.device).startswith("cuda"):
            raise IncompatibleTrial(
                "auto_gptq quantizes on CUDA only, and this trial runs on the CPU; "
                "quant.backend=gptqmodel and native run on both"
            )
        if not self.options()["sym"]:
            # Packing ORs what it shifted: a zero point of 0, less 1, fills its neighbours' bits.
            raise IncompatibleTrial(
                "auto_gptq 0.7.1 writes zero points of 0 over their neighbours': sym=true, "
                "or quant.backend=gptqmodel"
            )
        if model.model_type not in _MODEL_TYPES:
            raise IncompatibleTrial(
                f"auto_gptq does not know {model.model_type}; quant.backend=native or gptqmodel may"
            )
        self.env.require(RECIPE.environment)

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Write a GPTQ checkpoint, version 1 of the format."""
        served = runtimes("gptq", self.bits, self.group_size, sym=True)
        options = self.options()
        return quantize(RECIPE, self.env, options, model, calibration, out, progress, served)
