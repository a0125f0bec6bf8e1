"""Layers that must be treated alike: what a container or a server has as one.

vLLM makes one matrix of q, k and v, one of gate and up, and one kernel of all experts of a layer
(:func:`qsweep.formats.encoder.run_as_one`); a GGUF file has the same layer of all experts in one
tensor, and llama.cpp needs nothing else alike.

Nothing heavy is imported.
"""

from qsweep.formats.encoder import name_as_one
from qsweep.models.roles import EXPERT

# Containers whose configuration speaks of all layers at once.
OF_ONE_KIND = ("awq", "bitsandbytes")


def fused_with(layer: str, holder: str) -> str:
    """What a layer has in common with those that must be treated as it is: one name for all of them.

    >>> fused_with("model.layers.0.self_attn.q_proj", "gptq")
    'model.layers.0.self_attn.qkv_proj'
    >>> fused_with("model.layers.0.self_attn.q_proj", "gguf")
    'model.layers.0.self_attn.q_proj'
    >>> fused_with("model.layers.0.mlp.experts.7.up_proj", "gguf")
    'model.layers.0.mlp.experts.*.up_proj'

    Args:
        layer: The name of a linear layer in the checkpoint, without ``.weight``.
        holder: The container: gptq, compressed-tensors, gguf, awq, bitsandbytes.
    """
    if holder in OF_ONE_KIND:
        return ""
    if holder == "gguf":
        return stack_of(layer)
    return name_as_one(layer) or layer


def stack_of(layer: str) -> str:
    """A layer's name with ``*`` for the expert's number, where it is one of an expert."""
    return EXPERT.sub(".experts.*.", layer)
