"""AWQ through AutoAWQ 0.2.9, archived, in an environment of its own. CPU and CUDA."""

from dataclasses import dataclass
from typing import ClassVar

from qsweep.base.errors import IncompatibleTrial
from qsweep.models.source import ModelFacts
from qsweep.quantizers.grouped import AWQOptions
from qsweep.quantizers.isolated.base import IsolatedQuantizer
from qsweep.quantizers.isolated.run import Recipe


@dataclass(frozen=True)
class AutoAWQ(IsolatedQuantizer, AWQOptions):
    """AWQ as the package that most AWQ checkpoints were made with does it.

    It writes 4 bits with zero points, in GEMM layout, and nothing else.
    """

    backend: ClassVar[str] = "autoawq"
    label: ClassVar[str] = "autoawq"
    recipe: ClassVar[Recipe] = Recipe("run_autoawq", "autoawq", "awq")
    # The types of its 0.2.9 that are language models with layers AWQ's format holds.
    model_types: ClassVar[frozenset[str]] = frozenset(
        "aquila baichuan bloom cohere exaone falcon gemma gemma2 gpt_bigcode gpt_neox gptj "
        "internlm2 llama minicpm minicpm3 mistral mpt opt phi3 qwen qwen2 qwen3 stablelm "
        "starcoder2".split()
    )

    def refuse(self, model: ModelFacts) -> None:
        """Other bits than 4, and grids without zero points. Raises IncompatibleTrial."""
        if self.bits != 4:
            raise IncompatibleTrial(
                f"autoawq writes 4 bits only, not {self.bits}; "
                "quant.backend=gptqmodel and native have 2, 3 and 8"
            )
        if self.symmetric:
            raise IncompatibleTrial("autoawq's GEMM layout has zero points: sym=false")
