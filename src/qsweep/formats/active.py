"""What of an artifact is read for each token that is generated, told from its tensors' names.

Of a mixture of experts that are the experts that a token is sent to; of an embedding, unless it is the
output head too, a row, which counts as nothing; of a vision tower and of what predicts further tokens,
nothing.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from qsweep.models.architecture import EXPERT_KEYS
from qsweep.models.facts import is_embedding, is_head, is_of_text

# How configurations call the number of experts that each token is sent to.
_CHOSEN_KEYS = (
    *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k"),
    *("top_k_experts", "num_selected_experts", "expert_used_count"),
)
# Experts that hand a token on as it is take part in the choice, and are not stored.
_IDLE_KEY = "zero_expert_num"
# Experts lie in a module of that name, or in stacks that Granite and JetMoE, or llama.cpp, call so.
_ROUTED = re.compile(r"(^|\.)experts\.|\.(block_sparse_moe|mlp)\.(in|out)put_linear\.|_exps\.")
_GGUF_EMBEDDING, _GGUF_HEAD = "token_embd.weight", "output.weight"
# Beside it Gemma 3n has one for each layer, of which none is a head.
_BY_LAYER = re.compile(r"(^per_layer_token_embd|\.embed_tokens_per_layer)\.weight$")


def chosen_share(config: Mapping[str, Any]) -> float | None:
    """The share of its experts that a token is sent to; None where the configuration does not say.

    >>> chosen_share({"num_experts": 128, "num_experts_per_tok": 8})
    0.0625
    """
    inner = config.get("ffn_config")
    keys = {**inner, **config} if isinstance(inner, Mapping) else config
    count = _number(keys, (*EXPERT_KEYS, "expert_count"))
    chosen = _number(keys, _CHOSEN_KEYS)
    if count is None or chosen is None:
        return None
    return min(1.0, chosen / (count + (_number(keys, (_IDLE_KEY,)) or 0)))


def active_bytes(tensors: Mapping[str, int], chosen: float | None) -> int | None:
    """Bytes that are read for each token that is generated.

    Args:
        tensors: By name the stored bits of all tensors of an artifact.
        chosen: The share of its experts that a token is sent to, if it has some.

    Returns:
        None where there are experts, and nobody knows how many of them a token is sent to.

    >>> stored = {"lm_head.weight": 64, "layers.0.mlp.experts.0.up_proj.weight": 64}
    >>> active_bytes(stored, 0.25), active_bytes(stored, None)
    (10, None)
    """
    read = 0.0
    for name, bits in tensors.items():
        if not is_of_text(name) or _is_looked_up(name, tensors.keys()):
            continue
        routed = bool(_ROUTED.search(name))
        if routed and chosen is None:
            return None
        read += bits * chosen if routed and chosen is not None else bits
    return round(read / 8)


def _is_looked_up(name: str, names: Collection[str]) -> bool:
    # An embedding that is no head as well.
    if name == _GGUF_EMBEDDING:
        return _GGUF_HEAD in names
    return bool(_BY_LAYER.search(name)) or (is_embedding(name) and any(map(is_head, names)))


def _number(config: Mapping[str, Any], keys: Iterable[str]) -> float | None:
    for key in keys:
        value = config.get(key)
        # Layer by layer, as in Hunyuan's.
        values = value if isinstance(value, list | tuple) and value else [value]
        if all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in values):
            return sum(values) / len(values)
    return None
