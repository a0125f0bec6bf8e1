"""What the converter forgets to write, told from a model's configuration alone."""

import struct
from collections.abc import Mapping
from typing import Any

# Architectures whose classes in the converter write a list of parameters of their own, without the
# rotary embedding's base and scaling (:mod:`qsweep.formats.gguf.driver` adds them).
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
# Architectures whose classes in the converter do not write which layers have a sliding window; of so
# many layers, llama.cpp then takes all but the last.
_PERIODS = {
    "AfmoeForCausalLM": 4,
    "Cohere2ForCausalLM": 4,
    "Gemma2ForCausalLM": 2,
    "Gemma3ForCausalLM": 6,
    "Gemma3ForConditionalGeneration": 6,
    "Gemma3TextModel": 6,
    "GptOssForCausalLM": 2,
    "LagunaForCausalLM": 4,
}
# Of these it takes all but the first.
_DENSE_FIRST = ("LagunaForCausalLM",)


def is_completed(config: Mapping[str, Any]) -> bool:
    """Whether the converted file of a model gets metadata that the converter leaves out.

    >>> is_completed({"architectures": ["PhiForCausalLM"], "rope_theta": 10000})
    False
    >>> is_completed({"architectures": ["PhiForCausalLM"], "rope_parameters": {"rope_theta": 1e6}})
    True
    """
    named = config.get("architectures") or [""]
    if unusual_layers(config) is not None:
        return True
    if named[0] not in _FORGOTTEN:
        return False
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    places = (rope.get("rope_theta"), config.get("rope_theta"), config.get("rotary_emb_base"))
    base = next((value for value in places if isinstance(value, int | float)), _BASE)
    kind = rope.get("rope_type", rope.get("type"))
    return struct.pack("f", base) != struct.pack("f", _BASE) or kind in ("linear", "yarn")


# Of these the converter was told, or computed, something else before.
_CORRECTED = frozenset(
    {"falcon", "phi", "phimoe", "solar_open", "hunyuan_v1_moe", "ernie4_5_moe", "minimax_m2"}
    | {"deepseek_v3", "deepseek_v32", "dots1", "exaone_moe", "glm4_moe_lite", "glm_moe_dsa"}
    | {"llama4", "llama4_text"}
)


def is_corrected(config: Mapping[str, Any]) -> bool:
    """Whether the converted file of a model differs from what it was before it was put right.

    >>> is_corrected({"model_type": "gpt2"}), is_corrected({"model_type": "gpt2", "n_inner": 96})
    (False, True)
    """
    kind = config.get("model_type")
    return kind in _CORRECTED or (kind in ("gpt2", "gpt_bigcode") and bool(config.get("n_inner")))


def unusual_layers(config: Mapping[str, Any]) -> list[bool] | None:
    """Which layers have a sliding window; None where llama.cpp knows it, or is told.

    Nor is there anything to tell of a model without any such layer.

    >>> types = ["full_attention", "sliding_attention"]
    >>> unusual_layers({"architectures": ["Gemma2ForCausalLM"], "layer_types": types})
    [False, True]
    >>> unusual_layers({"architectures": ["Gemma2ForCausalLM"], "layer_types": types[::-1]})
    """
    named = config.get("architectures") or [""]
    text = config.get("text_config") or config
    period, types = _PERIODS.get(named[0]), text.get("layer_types")
    if period is None:
        return None
    if types:
        found = [kind == "sliding_attention" for kind in types]
    else:
        count, own = text.get("num_hidden_layers"), text.get("sliding_window_pattern")
        if not isinstance(count, int) or not isinstance(own, int) or own < 2:
            return None
        found = [(i + 1) % own > 0 for i in range(count)]
    first = 0 if named[0] in _DENSE_FIRST else 1
    known = [(i + first) % period > 0 for i in range(len(found))]
    return found if any(found) and found != known else None
