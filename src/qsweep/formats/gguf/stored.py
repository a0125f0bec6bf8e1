"""How each tensor of a GGUF file is stored, told from the file alone.

llama.cpp names tensors alike in all architectures (``gguf.constants.TENSOR_NAMES``), which tells the
decoder's linear layers from embeddings, norms, routers and convolutions.
"""

import re
from collections.abc import Collection, Iterable

from qsweep.formats.active import chosen_share
from qsweep.formats.artifact import Size
from qsweep.formats.gguf.reader import GGUFFile, GGUFTensor
from qsweep.formats.stored import StoredTensor, size_of

_LAYER = re.compile(r"^blk\.\d+\.(?P<part>.+)\.(weight|scale)$")
# Matrices in a layer that no model calls a linear layer, or that no method quantizes: norms, routers,
# convolutions, embeddings, RWKV's mixing vectors and low-rank matrices, tables of angles and signs.
_NOT_LINEAR = re.compile(
    r"norm|conv1d|shortconv\.conv$|ffn_gate_inp$|altup|time_mix_(lerp|first|decay|[a-z]\d|r_k|k_)"
    r"|channel_mix_lerp|embed_tokens|rot_embd|sinks|exp_probs|rel_b|layer_output_scale|ssm_[ad]$"
)
# What the converter computes from the configuration is stored, but no parameter.
_COMPUTED = re.compile(r"^rope_")
# A factor of a whole tensor, or of each expert: NVFP4's, BitNet's. That of the inputs is the kernel's.
_FACTOR = re.compile(r"\.(scale|input_scale)$")


def is_linear(tensor: GGUFTensor) -> bool:
    """Whether ``bpw`` counts a tensor: a linear layer's in the decoder, every expert's included."""
    found = _LAYER.match(tensor.name)
    if found is None or _NOT_LINEAR.search(found["part"]):
        return False
    return len(tensor.shape) > 1 or bool(_FACTOR.search(tensor.name))


def stored_tensors(file: GGUFFile, linears: Collection[str] | None = None) -> list[StoredTensor]:
    """How each tensor of a file is stored.

    Args:
        file: The file.
        linears: Names of the tensors that ``bpw`` counts, where somebody knows the checkpoint; by
            default those that their names tell.
    """
    return [
        StoredTensor(
            name=name,
            type=tensor.type.name,
            weights=0 if _COMPUTED.match(name) or _FACTOR.search(name) else tensor.weights,
            bits=8 * tensor.nbytes,
            quantized=tensor.type.quantized,
            linear=is_linear(tensor) if linears is None else name in linears,
        )
        for name, tensor in file.tensors.items()
    ]


def stored_size(file: GGUFFile, tensors: Iterable[StoredTensor]) -> Size:
    """What a file of these tensors stores, all of its parts together."""
    counts = {name: file.setting(name) for name in ("expert_count", "expert_used_count")}
    return size_of(tensors, file.weight_bytes, chosen_share(counts))
