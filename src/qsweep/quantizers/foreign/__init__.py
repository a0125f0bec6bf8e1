"""Quantizers whose libraries run in environments of their own.

Each is one file here, one worker in ``workers``, and one environment in ``conf/quant/env``.
"""

from qsweep.quantizers.foreign.auto_gptq import AutoGPTQ
from qsweep.quantizers.foreign.autoawq import AutoAWQ
from qsweep.quantizers.foreign.autoround import AutoRound
from qsweep.quantizers.foreign.custom import Custom
from qsweep.quantizers.foreign.llmcompressor import LLMCompressorAWQ, LLMCompressorGPTQ

__all__ = ["AutoAWQ", "AutoGPTQ", "AutoRound", "Custom", "LLMCompressorAWQ", "LLMCompressorGPTQ"]
