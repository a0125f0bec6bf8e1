"""qsweep's own GPTQ and AWQ: one pass over the model quantizes every configuration of a grid.

``capture.py`` brings the text to a model's layers, ``stages.py`` finds what runs in one, ``walk.py``
takes the text through it and ``stats.py`` gathers what goes into its linear layers; ``gptq.py`` and
``awq.py`` are the methods on plain matrices, ``fold.py`` finds where AWQ's scales can go,
``writer.py`` writes checkpoints, and ``grid.py`` brings them together. Only ``quantizers.py`` can be
imported without torch.
"""

from qsweep.quantizers.native.quantizers import NativeAWQ, NativeGPTQ, quantize_grid

__all__ = ["NativeAWQ", "NativeGPTQ", "quantize_grid"]
