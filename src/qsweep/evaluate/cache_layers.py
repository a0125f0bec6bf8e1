"""What each layer of a model keeps of a text it reads, told by the model's configuration. Pure.

A layer of attention keeps keys and values of each token; one with a sliding window only those of the
window; one with latent attention (DeepSeek's MLA) its latent and the rotary part; a recurrent layer
(Mamba, gated delta rule, short convolution) a state that does not grow; a layer that reads an earlier
one's cache nothing of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.formats.kv_cache.spec import KVCache
from qsweep.formats.kv_cache.types import NONE, QUANTIZED

FULL = ("full_attention", "attention", "global_attention", "hybrid", "global", "full")
WINDOWED = ("sliding_attention", "chunked_attention", "local_attention", "sliding", "local")
_NOTHING = ("mlp", "moe", "-", "E")
_RECURRENT = ("mamba", "linear", "conv", "recurrent", "rwkv", "hybrid")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")


@dataclass(frozen=True)
class Heads:
    """How many heads of keys and of values a layer keeps of a token, and how many numbers in each."""

    keys: int
    values: int
    size: int


def counts_heads(config: Mapping[str, Any]) -> bool:
    """Whether a configuration says how many heads attention has.

    One that has its architecture's defaults and does not is that of a model without attention.
    """
    if config.get("model_type") == "xlstm":
        return False  # its heads are those of a recurrent state
    return any(config.get(name) for name in (*_HEADS, *_KV_HEADS))


def layer_kinds(config: Mapping[str, Any]) -> list[str]:
    """What each layer keeps of a text, as configurations call it; ``hybrid``: of both kinds.

    Raises:
        ConfigError: The configuration does not say how many layers there are.
    """
    kinds = _own_kinds(config)
    shared = len(kinds) - _first_shared(config, len(kinds))
    return kinds[: len(kinds) - shared] + ["mlp"] * shared


def cache_owners(config: Mapping[str, Any]) -> dict[int, int]:
    """Layers that read the cache of an earlier one, and which: the last of their kind that keeps one.

    So do the last layers of Gemma 3n and 4 (``num_kv_shared_layers``).
    """
    kinds = _own_kinds(config)
    first = _first_shared(config, len(kinds))
    owners = {}
    for layer in range(first, len(kinds)):
        of_kind = [n for n in range(first) if kinds[n] == kinds[layer]]
        if of_kind:
            owners[layer] = of_kind[-1]
    return owners


def keeps_keys(kind: str, config: Mapping[str, Any]) -> bool:
    """Whether a layer of this kind keeps keys and values; of an unknown kind it is supposed."""
    return kind not in _NOTHING and (kind == "hybrid" or not keeps_state(kind, config))


def keeps_state(kind: str, config: Mapping[str, Any]) -> bool:
    """Whether a layer of this kind keeps a recurrent state, perhaps beside keys and values."""
    # Some call a layer that attends to everything "hybrid" without a state beside.
    full = kind == "hybrid" and not any(key.startswith(("mamba", "ssm")) for key in config)
    return any(word in kind for word in _RECURRENT) and not full


def window_of(kind: str, config: Mapping[str, Any]) -> int | None:
    """How many tokens a layer of this kind looks back at; None: all."""
    if kind not in WINDOWED:
        return None
    window = config.get("sliding_window") or config.get("attention_chunk_size")
    return int(window) if window else None


def kept_heads(config: Mapping[str, Any], index: int, kind: str) -> Heads:
    """What a layer that keeps keys and values keeps of each token.

    A latent is one head, of keys alone. Raises ConfigError where the configuration lacks a number.
    """
    if config.get("kv_lora_rank"):
        latent = int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim") or 0)
        return Heads(1, 0, latent)
    whole = kind in FULL
    heads = _of_layer(config, index, *_KV_HEADS)
    if whole and config.get("num_global_key_value_heads"):
        heads = int(config["num_global_key_value_heads"])
    queries = _of_layer(config, index, *_HEADS)
    if heads is None:
        heads = (
            1
            if config.get("multi_query") and not config.get("new_decoder_architecture")
            else queries
        )
    size = config.get("global_head_dim") if whole else None
    size = size or config.get("head_dim") or config.get("attention_head_dim")
    if not size:
        size = size_of(config, "hidden_size", "n_embd", "d_model") // (queries or 1)
    if heads is None:
        raise ConfigError("the configuration does not say how many attention heads there are")
    return Heads(heads, heads, int(size))


def require_cache(cache: KVCache, config: Mapping[str, Any], model: str) -> None:
    """Refuse a cache that a model cannot have.

    Args:
        cache: What is asked for.
        config: The model's, with its architecture's defaults.
        model: Its name, for the message.

    Raises:
        IncompatibleTrial: The model keeps no keys and values; a layer that is named keeps none; or a
            type's blocks do not divide a head, where llama.cpp refuses too.
        ConfigError: The configuration lacks a size.
    """
    if not cache:
        return
    asked, kinds = f"kv_cache={cache}", layer_kinds(config)
    keeping = [n for n, kind in enumerate(kinds) if keeps_keys(kind, config)]
    if not keeping or not counts_heads(config):
        of_heads = " (its configuration counts no heads)" * bool(keeping)
        raise IncompatibleTrial(
            f"{asked}: {model} is a model without attention{of_heads}, it has no KV cache"
        )
    if config.get("kv_lora_rank"):
        raise IncompatibleTrial(
            f"{asked}: {model} caches a latent in place of keys and values (multi-head latent "
            "attention), which is not simulated"
        )
    owners = cache_owners(config)
    for layer, _ in cache.layers:
        if layer >= len(kinds):
            raise IncompatibleTrial(
                f"{asked}: {model} has no layer {layer}, its {len(kinds)} layers are 0 to {len(kinds) - 1}"
            )
        if layer in owners:
            raise IncompatibleTrial(
                f"{asked}: layer {layer} of {model} reads the cache of layer {owners[layer]}; name that"
            )
        if layer not in keeping:
            raise IncompatibleTrial(
                f"{asked}: layer {layer} of {model} is no attention ({kinds[layer]}), it has no cache"
            )
    for layer in keeping:
        size, one = kept_heads(config, layer, kinds[layer]).size, cache.of(layer)
        for name in (one.keys, one.values):
            if name != NONE and size % QUANTIZED[name].block:
                raise IncompatibleTrial(
                    f"{asked}: blocks of {QUANTIZED[name].block} ({name}) do not divide the heads "
                    f"of {model}, which have {size} numbers; fp8 and int8 have no blocks"
                )


def size_of(config: Mapping[str, Any], *names: str) -> int:
    """The first of these numbers that a configuration has. Raises ConfigError where it has none."""
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise ConfigError(f"the configuration has no {names[0]}, without which memory is not known")


def _own_kinds(config: Mapping[str, Any]) -> list[str]:
    # Before layers that read another's cache are taken out.
    layers = size_of(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    model_type = str(config.get("model_type") or "")
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str) and len(pattern) == layers:
        return [{"M": "mamba", "*": "attention"}.get(letter, "mlp") for letter in pattern]
    for name in ("layer_types", "layers_block_type", "block_types"):
        stated = config.get(name)
        if isinstance(stated, (list, tuple)) and len(stated) == layers:
            return [str(kind) for kind in stated]
    if "mamba_d_ssm" in config and not config.get("attn_layer_period"):
        return ["hybrid"] * layers
    if period := config.get("attn_layer_period"):
        offset = int(config.get("attn_layer_offset") or 0)
        return ["attention" if n % period == offset else "mamba" for n in range(layers)]
    if (chosen := config.get("attn_layer_indices")) is not None:
        return ["attention" if n in chosen else "mamba" for n in range(layers)]
    if model_type in ("mamba", "mamba2", "falcon_mamba"):
        return ["mamba"] * layers
    if not config.get("sliding_window") or config.get("use_sliding_window") is False:
        return ["attention"] * layers
    every = config.get("sliding_window_pattern")
    if isinstance(every, int) and every > 1:
        return ["sliding" if (n + 1) % every else "attention" for n in range(layers)]
    return [
        "sliding" if model_type.startswith(("mistral", "mixtral", "phi3")) else "attention"
    ] * layers


def _first_shared(config: Mapping[str, Any], layers: int) -> int:
    return layers - int(config.get("num_kv_shared_layers") or 0)


def _of_layer(config: Mapping[str, Any], index: int, *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, (list, tuple)) and index < len(value):
            return int(value[index])
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
