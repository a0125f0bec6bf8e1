"""GPTQ and AWQ through llm-compressor, in an environment of its own. CPU and CUDA."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from qsweep.base.errors import IncompatibleTrial
from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.environments.choice import EnvChoice
from qsweep.quantizers.isolated.run import REVISION, Recipe, quantize
from qsweep.quantizers.packed import Sym, check_damp, check_packing, check_values, resolve_sym
from qsweep.text.calibration import CalibrationTokens

RECIPE = Recipe("run_llmcompressor", "llmcompressor", "compressed-tensors")


@dataclass(frozen=True)
class LLMCompressorGPTQ:
    """GPTQ as the vLLM project's own quantizer does it.

    ``act_group_aware`` is its ``actorder=static``: columns in the order of their activation, with
    groups as they were. It has none that needs a permutation at run time (``desc_act``).
    """

    bits: int = 4
    group_size: int = 128
    desc_act: bool = False
    act_group_aware: bool = True
    sym: Sym = None
    damp_percent: float = 0.05
    env: EnvChoice = field(default_factory=EnvChoice)

    method: ClassVar[str] = "gptq"
    backend: ClassVar[str] = "llmcompressor"
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
            "act_group_aware": self.act_group_aware and not self.desc_act,
            "sym": resolve_sym(self.sym, auto=True),
            "damp_percent": self.damp_percent,
        }

    def version(self) -> str:
        """Versions of the environment, and the revision of what is done around it."""
        return f"{self.env.version(RECIPE.environment)}+{REVISION}"

    def check(self, model: ModelFacts) -> None:
        """Refuse what the format cannot hold, and a missing environment. Raises IncompatibleTrial."""
        if self.desc_act:
            raise IncompatibleTrial(
                "llmcompressor has no order that needs a permutation at run time: desc_act=false; "
                "its own, quant.act_group_aware, does without"
            )
        _check("gptq", self.bits, self.group_size, model, self.env)

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Write a compressed-tensors checkpoint."""
        options = {"method": "gptq", **self.options()}
        served = _runtimes(self.bits)
        return quantize(RECIPE, self.env, options, model, calibration, out, progress, served)


@dataclass(frozen=True)
class LLMCompressorAWQ:
    """AWQ as the vLLM project's own quantizer does it; without clipping."""

    bits: int = 4
    group_size: int = 128
    sym: Sym = None
    env: EnvChoice = field(default_factory=EnvChoice)

    method: ClassVar[str] = "awq"
    backend: ClassVar[str] = "llmcompressor"
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
        """Refuse what the format cannot hold, and a missing environment. Raises IncompatibleTrial."""
        _check("awq", self.bits, self.group_size, model, self.env)

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Write a compressed-tensors checkpoint."""
        options = {"method": "awq", **self.options()}
        served = _runtimes(self.bits)
        return quantize(RECIPE, self.env, options, model, calibration, out, progress, served)


def _check(method: str, bits: int, group_size: int, model: ModelFacts, env: EnvChoice) -> None:
    check_packing(f"llmcompressor's {method}", "awq", 4, group_size, model, whole=True)
    if bits not in (4, 8):
        raise IncompatibleTrial(
            f"llmcompressor: no runtime serves compressed-tensors of {bits} bits; 4 and 8 are"
        )
    env.require(RECIPE.environment)


def _runtimes(bits: int) -> tuple[str, ...]:
    # vLLM's scheme for packed weights without quantized activations, and transformers with
    # compressed-tensors installed.
    return ("vllm", "transformers") if bits in (4, 8) else ()
