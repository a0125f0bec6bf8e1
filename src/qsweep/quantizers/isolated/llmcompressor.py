"""GPTQ and AWQ through llm-compressor, in an environment of its own. CPU and CUDA."""

from dataclasses import dataclass
from typing import Any, ClassVar

from qsweep.base.errors import IncompatibleTrial
from qsweep.formats.awq import CONTAINER as AWQ_CONTAINER
from qsweep.formats.packed import PackedContainer
from qsweep.models.source import ModelFacts
from qsweep.quantizers.grouped import AWQOptions, GPTQOptions
from qsweep.quantizers.isolated.base import IsolatedQuantizer
from qsweep.quantizers.isolated.run import Recipe


@dataclass(frozen=True)
class _LLMCompressor(IsolatedQuantizer):
    """Writes compressed-tensors, whose layers must have the shapes that AWQ's have."""

    backend: ClassVar[str] = "llmcompressor"
    recipe: ClassVar[Recipe] = Recipe("run_llmcompressor", "llmcompressor", "compressed-tensors")
    container: ClassVar[PackedContainer] = AWQ_CONTAINER

    @property
    def runtimes(self) -> tuple[str, ...]:
        """vLLM's scheme for packed weights, and transformers with compressed-tensors installed."""
        return ("vllm", "transformers") if self.bits in (4, 8) else ()

    def refuse(self, model: ModelFacts) -> None:
        """Bits that nothing serves. Raises IncompatibleTrial."""
        if self.bits not in (4, 8):
            raise IncompatibleTrial(
                f"llmcompressor: no runtime serves compressed-tensors of {self.bits} bits; "
                "4 and 8 are"
            )

    def worker_options(self) -> dict[str, Any]:
        """See the base class."""
        return {"method": self.method, **self.options()}


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
