"""How much memory serving an artifact takes: weights, the cache of a context, buffers. Pure.

Cache: a layer of attention keeps 2 x KV heads x head size numbers per token; one with a sliding window
only those of the window; one with latent attention (DeepSeek's MLA) its latent and the rotary part; a
recurrent layer (Mamba, gated delta rule, short convolution) a state that does not grow.

Buffers, as llama.cpp reserves them for a micro-batch of 512 tokens (``llama_context::sched_reserve``
in src/llama-context.cpp) with flash attention: at most the larger of logits and two hidden states in
float32, and of the mask in float32 and float16 and one hidden state. Against what llama.cpp
(llama-cpp-python 0.3.36, on a CPU) reports: SmolLM2-135M at contexts of 512 to 4096 and micro-batches
of 128 and 512 to the byte, a two-layer Gemma 3 with a vocabulary of 4096 between 0 and 22 % too low
(2.5 MiB). What a driver keeps for itself (some 0.3 to 0.5 GB per process on CUDA) is not in it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.models.config import read_config, text_config

BATCH = 512
"""Tokens that are read at a time: llama.cpp's micro-batch."""

CACHE_BITS = {
    "f32": 32.0, "f16": 16.0, "bf16": 16.0, "fp8": 8.0, "int8": 8.0,
    "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5,
}  # fmt: skip
"""Bits per number of a cache's types; those of llama.cpp with their blocks' scales."""

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_FULL = ("full_attention", "attention", "global_attention", "hybrid", "global", "full")
_WINDOWED = ("sliding_attention", "chunked_attention", "local_attention", "sliding", "local")
_NOTHING = ("mlp", "moe", "-", "E")
# llama.cpp rounds the cells of a window up to these (src/llama-kv-cache-iswa.cpp).
_CELLS = 256


@dataclass(frozen=True)
class Footprint:
    """Bytes that serving takes.

    ``unknown`` names kinds of layers that are not known here, counted as full attention.
    """

    weights: int
    cache: int
    buffers: int
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.buffers


def parse_bytes(text: str) -> int:
    """``16GB`` (10^9), ``16GiB`` (2^30) or a number of bytes. Raises ConfigError.

    >>> parse_bytes("16GB"), parse_bytes("0.5 GiB")
    (16000000000, 536870912)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise ConfigError(f"{text!r} is no amount of memory: 16GB, 24GiB or bytes are")
    base = 1024 if found[3] else 1000
    power = _UNITS[found[2].upper()]
    return int(float(found[1]) * base**power)


def serving_config(path: Path) -> dict[str, Any]:
    """A model's configuration with the defaults that its architecture has.

    transformers knows them, such as which layers of a Gemma have a window; of an architecture that
    it does not know, the file has to say all.
    """
    from transformers import AutoConfig

    raw = text_config(read_config(path))
    try:
        config: Any = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception:  # whatever a configuration's own validation raises
        return raw
    return {**raw, **config.get_text_config().to_dict()}


def footprint(
    weight_bytes: int, config: Mapping[str, Any], context: int, kv_cache: str = "f16"
) -> Footprint:
    """What serving one sequence takes.

    Args:
        weight_bytes: Of the artifact's weight files.
        config: Of the model, see :func:`serving_config`.
        context: Tokens of the sequence.
        kv_cache: The cache's type, of :data:`CACHE_BITS`.

    Raises:
        ConfigError: There is no such type, or the configuration lacks a size.
    """
    check_serving(context, kv_cache)
    bits, states, unknown = 0.0, 0, {}
    for index, kind in enumerate(layer_kinds(config)):
        tokens = _cells(kind, config, context)
        if tokens is None:
            states += _state(kind, config)
            tokens = context if kind == "hybrid" else 0
        elif kind not in (*_FULL, *_WINDOWED):
            unknown[kind] = True
        bits += tokens * _per_token(config, index, kind) * CACHE_BITS[kv_cache]
    return Footprint(
        weights=weight_bytes,
        cache=math.ceil(bits / 8) + 4 * states,
        buffers=_buffers(config, context),
        unknown=tuple(unknown),
    )


def check_serving(context: int, kv_cache: str) -> None:
    """Refuse a context or a cache's type that there is not. Raises ConfigError."""
    if kv_cache not in CACHE_BITS:
        raise ConfigError(f"kv_cache {kv_cache!r}: one of {', '.join(CACHE_BITS)}")
    if context < 1:
        raise ConfigError(f"a context of {context} tokens holds nothing")


def layer_kinds(config: Mapping[str, Any]) -> list[str]:
    """What each layer keeps of a text, as configurations call it; ``hybrid``: of both kinds."""
    layers = int(_size(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers"))
    kinds = _stated_kinds(config, layers)
    # The last layers of Gemma 3n and 4 read the cache of earlier ones.
    shared = int(config.get("num_kv_shared_layers") or 0)
    return kinds[: layers - shared] + ["mlp"] * shared


def _stated_kinds(config: Mapping[str, Any], layers: int) -> list[str]:
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


def _cells(kind: str, config: Mapping[str, Any], context: int) -> int | None:
    """Tokens that an attention layer keeps; None where a state is kept."""
    if kind in _WINDOWED:
        window = config.get("sliding_window") or config.get("attention_chunk_size") or context
        return min(context, -(-(int(window) + BATCH) // _CELLS) * _CELLS)
    if kind in _NOTHING:
        return 0
    recurrent = ("mamba", "linear", "conv", "recurrent", "rwkv", "hybrid")
    return (
        None if any(word in kind for word in recurrent) and not _is_full(kind, config) else context
    )


def _is_full(kind: str, config: Mapping[str, Any]) -> bool:
    # Some call a layer that attends to everything "hybrid" without a state beside.
    return kind == "hybrid" and not any(key.startswith(("mamba", "ssm")) for key in config)


def _per_token(config: Mapping[str, Any], index: int, kind: str) -> int:
    if config.get("kv_lora_rank"):
        return int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim") or 0)
    whole = kind in _FULL
    heads = _of_layer(config, index, "num_key_value_heads", "num_kv_heads", "n_head_kv")
    if whole and config.get("num_global_key_value_heads"):
        heads = int(config["num_global_key_value_heads"])
    queries = _of_layer(config, index, "num_attention_heads", "n_head", "n_heads")
    if heads is None:
        heads = (
            1
            if config.get("multi_query") and not config.get("new_decoder_architecture")
            else queries
        )
    size = config.get("global_head_dim") if whole else None
    size = size or config.get("head_dim") or config.get("attention_head_dim")
    if not size:
        size = _size(config, "hidden_size", "n_embd", "d_model") // (queries or 1)
    if heads is None:
        raise ConfigError("the configuration does not say how many attention heads there are")
    return 2 * heads * int(size)


def _state(kind: str, config: Mapping[str, Any]) -> int:
    """Numbers of a recurrent layer's state, kept in float32."""

    def of(*names: str, default: int = 0) -> int:
        return next((int(config[n]) for n in names if isinstance(config.get(n), int)), default)

    hidden = _size(config, "hidden_size", "n_embd", "d_model")
    if "conv" in kind:  # LFM2
        return hidden * of("conv_L_cache", default=3)
    if config.get("linear_num_value_heads"):  # the gated delta rule of Qwen3-Next
        keys = of("linear_num_key_heads") * of("linear_key_head_dim")
        values = of("linear_num_value_heads") * of("linear_value_head_dim")
        kernel = of("linear_conv_kernel_dim", default=4)
        return values * of("linear_key_head_dim") + (2 * keys + values) * kernel
    state = of("mamba_d_state", "ssm_state_size", "state_size", default=16)
    kernel = of("mamba_d_conv", "conv_kernel", "conv_kernel_size", default=4)
    heads = of("mamba_n_heads", "mamba_num_heads", "num_heads")
    inner = heads * of("mamba_d_head", "mamba_head_dim", "head_dim") or of(
        "intermediate_size" if "state_size" in config else "mamba_d_ssm",
        default=hidden * of("mamba_expand", "expand", default=2),
    )
    groups = of("mamba_n_groups", "n_groups") if heads else 0
    return inner * state + (inner + 2 * groups * state) * kernel


def _buffers(config: Mapping[str, Any], context: int) -> int:
    hidden = _size(config, "hidden_size", "n_embd", "d_model")
    tokens = min(BATCH, context)
    logits = tokens * 4 * (_size(config, "vocab_size") + 2 * hidden)
    return max(logits, tokens * (6 * context + 4 * hidden))


def _of_layer(config: Mapping[str, Any], index: int, *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, (list, tuple)) and index < len(value):
            return int(value[index])
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _size(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise ConfigError(f"the configuration has no {names[0]}, without which memory is not known")
