"""How much memory serving an artifact takes: weights, the cache of a context, buffers. Pure.

Cache: what :mod:`~qsweep.evaluate.cache_layers` says that each layer keeps.

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
from qsweep.evaluate.cache_layers import (
    FULL,
    WINDOWED,
    keeps_keys,
    keeps_state,
    kept_heads,
    layer_kinds,
    size_of,
    window_of,
)
from qsweep.formats.kv_cache.spec import KVCache
from qsweep.formats.kv_cache.types import CACHE_TYPES, NONE, SERVED_UNQUANTIZED
from qsweep.models.config import read_config, text_config

BATCH = 512
"""Tokens that are read at a time: llama.cpp's micro-batch."""

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
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
        kv_cache: The cache's type, of :data:`~qsweep.formats.kv_cache.types.CACHE_TYPES`.

    Raises:
        ConfigError: There is no such type, or the configuration lacks a size.
    """
    check_serving(context, kv_cache)
    bits, states, unknown = 0.0, 0, {}
    for index, kind in enumerate(layer_kinds(config)):
        if keeps_state(kind, config):
            states += _state(kind, config)
        if keeps_keys(kind, config):
            heads = kept_heads(config, index, kind)
            one = CACHE_TYPES[kv_cache].bits(heads.size)
            bits += _cells(kind, config, context) * (heads.keys + heads.values) * one
            if kind not in (*FULL, *WINDOWED):
                unknown[kind] = True
    return Footprint(
        weights=weight_bytes,
        cache=math.ceil(bits / 8) + 4 * states,
        buffers=_buffers(config, context),
        unknown=tuple(unknown),
    )


def check_serving(context: int, kv_cache: str) -> None:
    """Refuse a context or a cache's type that there is not. Raises ConfigError."""
    if kv_cache not in CACHE_TYPES:
        raise ConfigError(f"kv_cache {kv_cache!r}: one of {', '.join(CACHE_TYPES)}")
    if context < 1:
        raise ConfigError(f"a context of {context} tokens holds nothing")


def kv_bytes_per_token(config: Mapping[str, Any], cache: KVCache, context: int) -> float:
    """Bytes that a token's keys and values take over all layers, in a sequence of a context.

    A layer with a sliding window keeps no more than its window, so that a token of a long sequence
    takes less. Layers that read another's cache keep nothing; a recurrent state does not grow and is
    not counted. What is not quantized takes 16 bits, as serving keeps it.

    Raises:
        ConfigError: The configuration lacks a size.
    """
    bits = 0.0
    for index, kind in enumerate(layer_kinds(config)):
        if keeps_keys(kind, config):
            heads, types = kept_heads(config, index, kind), cache.of(index)
            each = heads.keys * _stored_bits(types.keys, heads.size)
            each += heads.values * _stored_bits(types.values, heads.size)
            bits += each * min(context, window_of(kind, config) or context) / context
    return bits / 8


def _stored_bits(name: str, size: int) -> float:
    return (SERVED_UNQUANTIZED if name == NONE else CACHE_TYPES[name]).bits(size)


def _cells(kind: str, config: Mapping[str, Any], context: int) -> int:
    """Tokens that a layer of attention has room for."""
    if kind not in WINDOWED:
        return context
    window = window_of(kind, config) or context
    return min(context, -(-(window + BATCH) // _CELLS) * _CELLS)


def _state(kind: str, config: Mapping[str, Any]) -> int:
    """Numbers of a recurrent layer's state, kept in float32."""

    def of(*names: str, default: int = 0) -> int:
        return next((int(config[n]) for n in names if isinstance(config.get(n), int)), default)

    hidden = size_of(config, "hidden_size", "n_embd", "d_model")
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
    hidden = size_of(config, "hidden_size", "n_embd", "d_model")
    tokens = min(BATCH, context)
    logits = tokens * 4 * (size_of(config, "vocab_size") + 2 * hidden)
    return max(logits, tokens * (6 * context + 4 * hidden))
