"""RTN, GPTQ and AWQ through llm-compressor, in an environment of its own. CPU and CUDA."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from qsweep.base.errors import IncompatibleTrial
from qsweep.formats.awq import CONTAINER as AWQ_CONTAINER
from qsweep.formats.packed import PackedContainer
from qsweep.models.source import ModelFacts
from qsweep.quantizers.checks import check_held
from qsweep.quantizers.grouped import AWQOptions, GPTQOptions
from qsweep.quantizers.isolated.base import IsolatedQuantizer
from qsweep.quantizers.isolated.run import Recipe

_WRITES = "compressed-tensors"


@dataclass(frozen=True)
class _LLMCompressor(IsolatedQuantizer):
    """Writes compressed-tensors: integers of any group size, or a number format that has a preset.

    Integers' layers must have the shapes that AWQ's have.
    """

    backend: ClassVar[str] = "llmcompressor"
    recipe: ClassVar[Recipe] = Recipe("run_llmcompressor", "llmcompressor", _WRITES)
    container: ClassVar[PackedContainer] = AWQ_CONTAINER
    any_format: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format.container == _WRITES:
            # What it writes anyway.
            object.__setattr__(self, "format", replace(self.format, container="auto"))  # frozen

    @property
    def runtimes(self) -> tuple[str, ...]:
        """vLLM's scheme for packed weights, and transformers with compressed-tensors installed."""
        if self.format.preset is not None:
            return self.format.runtimes
        return ("vllm", "transformers") if self.bits in (4, 8) else ()

    def check(self, model: ModelFacts) -> None:
        """Refuse formats that it has no preset for, too. Raises IncompatibleTrial."""
        if self.format.preset is None:
            super().check(model)
            return
        self.check_format()
        check_held(self, model)
        self.refuse(model)
        self.env.require(self.recipe.environment)

    def check_format(self) -> None:
        """See the base class."""
        if self.format.container != "auto":
            raise IncompatibleTrial(
                f"{self.label} writes {_WRITES} checkpoints, not container={self.format.container}"
            )
        own = {name for name in self.format.options() if name != "format"}
        if own or (self.format.preset is None and self.format.name != "int"):
            what = f"format.{min(own)}" if own else f"format={self.format.name}"
            raise IncompatibleTrial(f"{self.label} has no {what}; quant.backend=native does")

    def refuse(self, model: ModelFacts) -> None:
        """Bits that nothing serves. Raises IncompatibleTrial."""
        if self.bits not in (4, 8):
            raise IncompatibleTrial(
                f"llmcompressor: no runtime serves compressed-tensors of {self.bits} bits; "
                "4 and 8 are"
            )

    def recipe_used(self) -> Recipe:
        """A preset's scales are computed and stored in the dtype of the weights, as they are there."""
        preset = self.format.preset is not None
        return replace(self.recipe, own_dtype=preset, calibrated=self.uses_calibration)

    def worker_options(self, model: ModelFacts) -> dict[str, Any]:
        """See the base class."""
        told = {"method": self.method, **self.options()}
        if self.format.preset is not None:
            told |= {"scheme": self.format.preset, "ignore": list(self.kept(model))}
        return told


@dataclass(frozen=True)
class LLMCompressorRTN(_LLMCompressor):
    """Round to nearest as the vLLM project's own quantizer does it."""

    method: ClassVar[str] = "rtn"
    label: ClassVar[str] = "llmcompressor's rtn"

    @property
    def uses_calibration(self) -> bool:  # type: ignore[override]
        """Only for activations that have static scales."""
        return self.format.static


@dataclass(frozen=True)
class LLMCompressorGPTQ(_LLMCompressor, GPTQOptions):
    """GPTQ as the vLLM project's own quantizer does it.

    ``act_group_aware`` is its ``actorder=static``: columns in the order of their activation, with
    groups as they were. It has none that needs a permutation at run time (``desc_act``).
    """

    label: ClassVar[str] = "llmcompressor's gptq"

    def refuse(self, model: ModelFacts) -> None:
        """Also an order across groups. Raises IncompatibleTrial."""
        if self.desc_act:
            raise IncompatibleTrial(
                "llmcompressor has no order that needs a permutation at run time: desc_act=false; "
                "its own, quant.act_group_aware, does without"
            )
        super().refuse(model)


@dataclass(frozen=True)
class LLMCompressorAWQ(_LLMCompressor, AWQOptions):
    """AWQ as the vLLM project's own quantizer does it; without clipping."""

    label: ClassVar[str] = "llmcompressor's awq"
