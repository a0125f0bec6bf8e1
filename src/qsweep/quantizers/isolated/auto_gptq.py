"""GPTQ through AutoGPTQ 0.7.1, archived, in an environment of its own. CUDA only."""

from dataclasses import dataclass
from typing import Any, ClassVar

from qsweep.base.errors import IncompatibleTrial
from qsweep.models.devices import resolve_device
from qsweep.models.source import ModelFacts
from qsweep.quantizers.grouped import GPTQOptions
from qsweep.quantizers.isolated.base import IsolatedQuantizer
from qsweep.quantizers.isolated.run import Recipe


@dataclass(frozen=True)
class AutoGPTQ(IsolatedQuantizer, GPTQOptions):
    """GPTQ as the package that most GPTQ checkpoints were made with does it, in version 1.

    ``act_group_aware`` is GPTQModel's and has no effect here.
    """

    backend: ClassVar[str] = "auto_gptq"
    label: ClassVar[str] = "auto_gptq"
    recipe: ClassVar[Recipe] = Recipe(
        "run_auto_gptq", "auto_gptq", "gptq", dtypes=("float16", "bfloat16")
    )
    # The types of its 0.7.1 that are language models.
    model_types: ClassVar[frozenset[str]] = frozenset(
        "baichuan bloom codegen deci falcon gemma gpt2 gpt_bigcode gpt_neox gptj internlm llama "
        "longllama mistral moss mpt opt phi qwen qwen2 stablelm_epoch xverse yi".split()
    )

    def options(self) -> dict[str, Any]:
        """The effective options."""
        options = super().options()
        del options["act_group_aware"]
        return options

    @property
    def packed_bits(self) -> int:
        """It writes all bits that the format holds."""
        return self.bits

    def refuse(self, model: ModelFacts) -> None:
        """A CPU, and zero points. Raises IncompatibleTrial."""
        if not resolve_device(self.env.device).startswith("cuda"):
            raise IncompatibleTrial(
                "auto_gptq quantizes on CUDA only, and this trial runs on the CPU; "
                "quant.backend=gptqmodel and native run on both"
            )
        if not self.symmetric:
            # Packing ORs what it shifted: a zero point of 0, less 1, fills its neighbours' bits.
            raise IncompatibleTrial(
                "auto_gptq 0.7.1 writes zero points of 0 over their neighbours': sym=true, "
                "or quant.backend=gptqmodel"
            )
