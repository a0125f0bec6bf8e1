"""What the converter forgets of a rotary embedding, told from a model's configuration alone."""

import struct
from collections.abc import Mapping
from typing import Any

# Architectures whose classes in the converter write a list of parameters of their own, without the
# rotary embedding's base and scaling (:mod:`qsweep.gguf.driver` adds them).
_FORGOTTEN = frozenset(
    (
        "FalconForCausalLM",
        "Gemma2ForCausalLM",
        "GemmaForCausalLM",
        "GPTNeoXForCausalLM",
        "MiniCPM3ForCausalLM",
        "PhiForCausalLM",
        "StableLmForCausalLM",
    )
)
# What llama.cpp takes where a file says nothing.
_BASE = 10000.0


def is_completed(config: Mapping[str, Any]) -> bool:
    """Whether the converted file of a model gets metadata that the converter leaves out.

    >>> is_completed({"architectures": ["PhiForCausalLM"], "rope_theta": 10000})
    False
    >>> is_completed({"architectures": ["PhiForCausalLM"], "rope_parameters": {"rope_theta": 1e6}})
    True
    """
    named = config.get("architectures") or [""]
    if named[0] not in _FORGOTTEN:
        return False
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    places = (rope.get("rope_theta"), config.get("rope_theta"), config.get("rotary_emb_base"))
    base = next((value for value in places if isinstance(value, int | float)), _BASE)
    kind = rope.get("rope_type", rope.get("type"))
    return struct.pack("f", base) != struct.pack("f", _BASE) or kind in ("linear", "yarn")
