"""Two configurations: whether they describe the same function of the same sizes."""

from collections.abc import Mapping
from typing import Any

from qsweep.formats.belonging.difference import Difference
from qsweep.models.architecture import EXPERT_KEYS
from qsweep.models.config import text_config

# What is compared, the most telling first: in words, and under which names it stands.
_FACETS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("layers", ("num_hidden_layers", "n_layer", "n_layers", "num_layers")),
    ("hidden size", ("hidden_size", "n_embd", "d_model")),
    ("attention heads", ("num_attention_heads", "n_head", "n_heads")),
    ("key-value heads", ("num_key_value_heads", "num_kv_heads", "multi_query_group_num")),
    ("head size", ("head_dim",)),
    ("feed-forward size", ("intermediate_size", "n_inner", "ffn_dim")),
    ("experts", EXPERT_KEYS),
    ("feed-forward size of an expert", ("moe_intermediate_size",)),
    ("experts per token", ("num_experts_per_tok", "num_experts_per_token", "moe_topk")),
    ("norm epsilon", ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")),
    ("activation", ("hidden_act", "hidden_activation", "activation_function")),
    ("attention bias", ("attention_bias",)),
    ("sliding window", ("sliding_window",)),
    ("kinds of layers", ("layer_types",)),
    ("soft cap of logits", ("final_logit_softcapping", "attn_logit_softcapping")),
    ("scale of logits", ("logit_scale", "logits_scaling", "embedding_multiplier")),
)
_BASE = ("rope_theta", "rotary_emb_base")
_PARTIAL = ("partial_rotary_factor", "rotary_pct")
# What holds where transformers itself leaves something out.
_USUAL = {"attention bias": False, "rope partial_rotary_factor": 1.0}
_ROTARY = (
    *("factor", "original_max_position_embeddings", "attention_factor"),
    *("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "short_factor"),
    *("long_factor", "mscale", "mscale_all_dim"),
)


def compare_configs(own: Mapping[str, Any], base: Mapping[str, Any]) -> list[Difference]:
    """In what an artifact's ``config.json`` describes another function than the model's.

    Versions of transformers spell one thing in several ways and leave defaults out; where two
    configurations differ as written, transformers' own reading of both is asked.
    """
    types = [str(text_config(one).get("model_type") or "?") for one in (own, base)]
    if types[0] != types[1]:
        return [Difference(f"architecture {types[0]} instead of {types[1]}")]
    if _facets(own) == _facets(base):
        return []
    read = _completed(own), _completed(base)
    complete = read[0] is not None and read[1] is not None
    ours, theirs = _facets(read[0] if complete else own), _facets(read[1] if complete else base)
    found = []
    for name in {**theirs, **ours}:
        usual = _USUAL.get(name.partition(" of ")[0]) if complete else None
        one, other = ours.get(name, usual), theirs.get(name, usual)
        # As written, what one of them leaves out may be what the other says.
        if one != other and (complete or None not in (one, other)):
            found.append(Difference(f"{name} {_shown(one)} instead of {_shown(other)}"))
    return found


def _facets(config: Mapping[str, Any] | None) -> dict[str, Any]:
    text = text_config(config or {})
    found: dict[str, Any] = {}
    for name, keys in _FACETS:
        found[name] = next((text[key] for key in keys if text.get(key) is not None), None)
    # What is left out is what is usual, not None.
    return {k: v for k, v in found.items() if v is not None or k not in _USUAL} | _rotary(text)


def _rotary(text: Mapping[str, Any]) -> dict[str, Any]:
    """Base and scaling of the rotary embedding, of each kind of layer where they differ."""
    stated = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(stated, Mapping):
        return {}
    inner = {str(kind): part for kind, part in stated.items() if isinstance(part, Mapping)}
    found: dict[str, Any] = {}
    for kind, part in (inner or {"": stated}).items():
        suffix = f" of {kind}" if kind else ""
        bases = [place[key] for place in (part, text) for key in _BASE if key in place]
        found[f"rope base{suffix}"] = float(bases[0]) if bases else None
        # A part of each head's size is rotated whatever the scaling.
        for key in _PARTIAL:
            partial = part.get(key, text.get(key))
            if isinstance(partial, int | float):
                found.setdefault(f"rope partial_rotary_factor{suffix}", float(partial))
        type_ = part.get("rope_type", part.get("type"))
        found[f"rope scaling{suffix}"] = type_ or "default"
        for key in _ROTARY:
            if part.get(key) is not None and (type_ or "default") != "default":
                found[f"rope {key}{suffix}"] = part[key]
    return found


def _completed(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """A configuration with transformers' defaults in it; None where it does not know the type."""
    from transformers import AutoConfig

    kept = {k: v for k, v in config.items() if k not in ("quantization_config", "auto_map")}
    try:
        found = AutoConfig.for_model(str(kept.pop("model_type", "")), **kept)
        return dict(found.to_dict())
    except Exception:  # whatever validation a configuration has of its own
        return None


def _shown(value: Any) -> str:
    text = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
