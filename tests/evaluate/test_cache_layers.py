"""What layers keep, by the configuration: bytes per token, and caches that cannot be had."""

import pytest

from qsweep.base.errors import IncompatibleTrial
from qsweep.evaluate.cache_layers import cache_owners, require_cache
from qsweep.evaluate.serving_memory import footprint, kv_bytes_per_token
from qsweep.formats.kv_cache.spec import kv_cache

DENSE = {
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
    "hidden_size": 512, "vocab_size": 1000,
}  # fmt: skip
_KINDS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
WINDOWED = DENSE | {"sliding_window": 100, "layer_types": _KINDS}


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        ("none", 32),
        ("fp8", 16),
        ("q8_0", 17),
        ("q8_0/q4_0", 8.5 + 4.5),
        ("int8", 2 * (8 + 32 / 64)),  # a float32 for each head of 64
        ("nvfp4", 9),
        ({"default": "q4_0", 0: "none", 3: "q8_0"}, (2 * 9 + 32 + 17) / 4),
    ],
)
def test_bytes_per_token_of_all_layers(spec, bits):
    found = kv_bytes_per_token(DENSE, kv_cache(spec), 500)
    assert found == pytest.approx(4 * 2 * 64 * bits / 8)
    if isinstance(spec, str) and "/" not in spec and spec != "none":
        assert footprint(0, DENSE, 500, spec).cache == pytest.approx(500 * found)


def test_a_window_is_kept_and_no_more():
    one = 2 * 2 * 64 * 8 / 8
    assert kv_bytes_per_token(WINDOWED, kv_cache("fp8"), 100) == 4 * one
    assert kv_bytes_per_token(WINDOWED, kv_cache("fp8"), 400) == one + 3 * one / 4
    exception = kv_cache({"default": "fp8", 2: "none"})
    assert kv_bytes_per_token(WINDOWED, exception, 400) == 2 * one + 3 * one / 4


def test_a_layer_that_reads_anothers_keeps_nothing():
    config = WINDOWED | {"num_kv_shared_layers": 1}
    assert cache_owners(config) == {3: 1} and cache_owners(WINDOWED) == {}
    assert kv_bytes_per_token(config, kv_cache("fp8"), 100) == 3 * 2 * 2 * 64
    require_cache(kv_cache({1: "q8_0"}), config, "gemma")
    with pytest.raises(IncompatibleTrial, match="layer 3 of gemma reads the cache of layer 1"):
        require_cache(kv_cache({3: "q8_0"}), config, "gemma")


def test_hybrids_have_a_cache_where_they_attend():
    config = DENSE | {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
    assert kv_bytes_per_token(config, kv_cache("fp8"), 100) == 2 * 2 * 64
    require_cache(kv_cache("q4_0"), config, "qwen")
    with pytest.raises(IncompatibleTrial, match=r"layer 1 of qwen is no attention"):
        require_cache(kv_cache({1: "q4_0"}), config, "qwen")


@pytest.mark.parametrize(
    ("more", "spec", "said"),
    [
        ({"model_type": "mamba"}, "fp8", "kv_cache=fp8: x is a model without attention"),
        ({"kv_lora_rank": 32}, "fp8", "x caches a latent"),
        ({"head_dim": 80}, "q4_0", r"blocks of 32 \(q4_0\) do not divide the heads of x, .* 80"),
        ({"head_dim": 72}, "fp8/nvfp4", r"blocks of 16 \(nvfp4\)"),
        ({}, {4: "fp8"}, "x has no layer 4, its 4 layers are 0 to 3"),
        ({}, {"default": "fp8", 7: "none"}, "x has no layer 7"),
    ],
)
def test_what_a_model_cannot_have_is_one_line(more, spec, said):
    with pytest.raises(IncompatibleTrial, match=said) as caught:
        require_cache(kv_cache(spec), DENSE | more, "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [{"model_type": "rwkv", "attention_hidden_size": 64}, {"model_type": "xlstm", "num_heads": 4}],
)
def test_a_model_that_counts_no_heads_of_attention_has_no_cache(config):
    with pytest.raises(IncompatibleTrial, match=r"x is a model without attention \(its conf"):
        require_cache(kv_cache("fp8"), config | {"num_hidden_layers": 4}, "x")


def test_without_a_quantized_cache_nothing_is_asked():
    require_cache(kv_cache("none"), {}, "x")
    require_cache(kv_cache("fp8"), DENSE | {"head_dim": 80}, "x")
