"""A GGUF file's hyperparameters against a model's ``config.json``.

What llama.cpp's converter writes for each (``conversion/base.py``, ``TextModel.set_gguf_parameters``)
is compared as far as both sides state it; several architectures mean something of their own by some.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qsweep.formats.gguf.header import printable
from qsweep.formats.gguf.reader import GGUFFile
from qsweep.models.config import read_config, text_config

# By the key below the architecture's: how configurations call the same number. The first that is there
# counts.
SAME: Mapping[str, tuple[str, ...]] = {
    "embedding_length": ("hidden_size", "n_embd", "d_model"),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_dim"),
    "attention.head_count": ("num_attention_heads", "n_head", "n_heads"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "layer_norm_epsilon", "norm_eps"),
    "attention.layer_norm_epsilon": (
        *("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    ),
    "attention.sliding_window": ("sliding_window",),
    "rope.freq_base": ("rope_theta", "rotary_emb_base"),
    "rope.scaling.factor": ("factor",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok", "moe_top_k"),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale",),
}
_CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")
# What a file may say otherwise and still compute the same, and what shapes tell better.
_FREE = ("context_length", "vocab_size", "nextn_predict_layers")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# What the converter computes by itself, whatever the configuration says.
_COMPUTED = {"falcon": ("feed_forward_length",)}
# Where attention is over compressed keys and values, the file's heads are those.
_COMPRESSED = ("attention.head_count_kv", "attention.key_length")
# Kinds of scaling that lie in the file as factors for each frequency, and not as one number.
_IN_TENSORS = ("llama3", "longrope", "su", "default", None)


def config_differences(file: GGUFFile, source: Path) -> list[str]:
    """In which hyperparameters a file is not the model's in the directory ``source``, a line each.

    A number that only one side states is no difference: both have defaults of their own.

    Raises:
        ConfigError: the directory has no configuration that can be read.
    """
    config = text_config(read_config(source))
    return [printable(line) for line in _differences(file, config)]


def metadata_differences(file: GGUFFile, own: GGUFFile) -> list[str]:
    """In which numbers a file computes otherwise than our own conversion of the model, a line each.

    Both are of llama.cpp's own keys, so nothing has to be known of the architecture.
    """
    lines = []
    further = file.setting("nextn_predict_layers"), own.setting("nextn_predict_layers")
    for key, value in own.metadata.items():
        name = key.removeprefix(f"{own.architecture}.")
        found = file.setting(name)
        if name == key or name in _FREE or found is None or agree(found, value):
            continue
        if name == "block_count" and found - (further[0] or 0) == value - (further[1] or 0):
            continue
        lines.append(f"{name} is {_short(found)} in the file and {_short(value)} in the model")
    return [printable(line) for line in lines]


def context_difference(file: GGUFFile, source: Path) -> str | None:
    """Whether a file states another context length, in one line; makers raise and lower it at will."""
    own = _first(text_config(read_config(source)), _CONTEXT)
    found = file.setting("context_length")
    if not isinstance(found, int) or not isinstance(own, int) or found == own:
        return None
    return f"context_length is {found} in the file and {own} in the model"


def _differences(file: GGUFFile, config: Mapping[str, Any]) -> Iterator[str]:
    yield from _layers(file, config)
    rope = _rope(config)
    for key, names in SAME.items():
        found, own = file.setting(key), _first({**config, **rope}, names)
        # Zero is what the converter writes of a part that the architecture has not.
        if not found or own is None or isinstance(own, Mapping):
            continue
        if key in _COMPUTED.get(file.architecture, ()):
            continue
        if key in _COMPRESSED and config.get("kv_lora_rank"):
            continue
        if key.startswith("rope.scaling") and rope.get("rope_type") in _IN_TENSORS:
            continue
        if not agree(found, own):
            yield f"{key} is {_short(found)} in the file and {_short(own)} in the model"


def _layers(file: GGUFFile, config: Mapping[str, Any]) -> Iterator[str]:
    found, own = file.setting("block_count"), _first(config, _LAYERS)
    further = file.setting("nextn_predict_layers") or 0
    if isinstance(found, int) and isinstance(own, int) and own not in (found, found - further):
        yield f"block_count is {found} in the file and {own} layers in the model"


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary embedding's settings, those of full attention where kinds of layers have their own."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found = found if isinstance(found, Mapping) else {}
    inner = found.get("full_attention")
    rope = inner if isinstance(inner, Mapping) else found
    return {**rope, "rope_type": rope.get("rope_type", rope.get("type"))}


def agree(found: Any, own: Any) -> bool:
    """Whether numbers are the same to float32's rounding; a list has one for each layer."""
    # Layers without the part count as zero.
    if isinstance(found, list) and not isinstance(own, list):
        return all(agree(one, own) for one in found if one)
    if isinstance(own, list) and not isinstance(found, list):
        return all(agree(found, one) for one in own if one)
    if isinstance(found, list):
        return len(found) == len(own) and all(map(agree, found, own))
    if isinstance(found, int | float) and isinstance(own, int | float):
        return math.isclose(found, own, rel_tol=1e-5)
    return type(found) is not type(own) or bool(found == own)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def _short(value: Any) -> str:
    number = float(f"{value:.6g}") if isinstance(value, float) else value
    return str(number)
