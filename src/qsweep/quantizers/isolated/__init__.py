"""Quantizers whose libraries run in environments of their own.

Each is one file here, one worker in ``workers``, and one environment in ``conf/quant/env``.
"""

from qsweep.quantizers.isolated.auto_gptq import AutoGPTQ
from qsweep.quantizers.isolated.autoawq import AutoAWQ
from qsweep.quantizers.isolated.autoround import AutoRound
from qsweep.quantizers.isolated.custom import Custom
from qsweep.quantizers.isolated.llmcompressor import (
    LLMCompressorAWQ,
    LLMCompressorGPTQ,
    LLMCompressorRTN,
)

__all__ = [
    "AutoAWQ",
    "AutoGPTQ",
    "AutoRound",
    "Custom",
    "LLMCompressorAWQ",
    "LLMCompressorGPTQ",
    "LLMCompressorRTN",
]
