"""A simulated cache against transformers' own forward with a cache that stores the same."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qsweep.base.errors import IncompatibleTrial
from qsweep.evaluate.kv_cache import served_cache
from qsweep.formats.kv_cache.rounding import stored
from qsweep.formats.kv_cache.spec import kv_cache
from qsweep.formats.kv_cache.types import KEYS_IN_PAIRS

_SMALL = {
    "vocab_size": 256, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
_SHARED = {
    "head_dim": 64, "num_hidden_layers": 6, "num_kv_shared_layers": 2, "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
}  # fmt: skip
_OF = {
    "llama": {},
    "qwen3": {"head_dim": 64},
    "gemma3_text": {
        "head_dim": 64, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_neox": {},
    "phi": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 128},
    "gpt2": {"n_embd": 128, "n_layer": 2, "n_head": 2},
    "gpt_oss": {
        "head_dim": 64, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma3n_text": _SHARED | {
        "vocab_size_per_layer_input": 256, "hidden_size_per_layer_input": 8, "altup_num_inputs": 2,
        "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 6, "intermediate_size": [128] * 6,
    },
    "gemma4_text": _SHARED | {"global_head_dim": 128, "hidden_size_per_layer_input": 0},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_5_text": {
        "head_dim": 64, "linear_num_key_heads": 1, "linear_num_value_heads": 2,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "deepseek_v2": {
        "q_lora_rank": 16, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32,
        "v_head_dim": 64, "n_routed_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 64, "n_group": 1, "topk_group": 1,
    },
    "mamba": {"state_size": 16, "time_step_rank": 16},
    "bloom": {},
}  # fmt: skip
IDS = torch.randint(3, 256, (1, 24), generator=torch.Generator().manual_seed(3))


def tiny(architecture, **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(_SMALL | _OF[architecture] | more))
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(3.0)
    return model


class StoringCache(DynamicCache):
    """transformers' cache, which stores keys and values as a type has them."""

    def __init__(self, config, cache):
        super().__init__(config=config)
        self.cache, self.given = cache, set()
        self.pairs = config.model_type in KEYS_IN_PAIRS

    def update(self, key_states, value_states, layer_idx, *rest, **more):
        types = self.cache.of(layer_idx)
        self.given.add(layer_idx)
        for name in {types.keys} - {"none"}:
            key_states = stored(key_states, name, "keys", pairs=self.pairs)[0]
        for name in {types.values} - {"none"}:
            value_states = stored(value_states, name, "values")[0]
        return super().update(key_states, value_states, layer_idx, *rest, **more)


def by_transformers(model, cache):
    """Logits of a text whose first 16 tokens are read at once and the others one by one."""
    kept = StoringCache(model.config, cache)
    parts = [IDS[:, :16], *IDS[:, 16:].split(1, dim=1)]
    found = [model(part, past_key_values=kept, use_cache=True).logits for part in parts]
    return torch.cat(found, dim=1), kept.given


@pytest.mark.parametrize(
    "architecture", [name for name in _OF if name not in ("deepseek_v2", "mamba", "bloom")]
)
def test_as_transformers_with_a_cache_that_stores_the_same(architecture):
    model, cache = tiny(architecture), kv_cache({"default": "q8_0/q4_0", 1: "nvfp4/int8"})
    with torch.inference_mode():
        plain = model(IDS, use_cache=False).logits
        expected, layers = by_transformers(model, cache)
        with served_cache(model, cache) as seen:
            found = model(IDS, use_cache=False).logits
        restored = model(IDS, use_cache=False).logits
    # A number between two codes may fall on either side where sums are added up in another order.
    off = (found - expected).norm(dim=-1) / (expected - plain).norm()
    assert off[:, :16].max() < 1e-3 and off.norm() < 0.1
    assert (found - plain).norm() > 0.003 * plain.norm() and torch.equal(restored, plain)
    shared = {4, 5} if "num_kv_shared_layers" in _OF[architecture] else set()
    assert seen.layers == layers | shared and seen.facts()["layers"] == len(seen.layers)


def test_eager_attention_too_and_the_table_is_as_it_was():
    model, cache = tiny("gemma3_text", attn_implementation="eager"), kv_cache("q4_0")
    before = dict(ALL_ATTENTION_FUNCTIONS)
    with torch.inference_mode():
        expected, _ = by_transformers(model, cache)
        with served_cache(model, cache):
            found = model(IDS, use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    with pytest.raises(ZeroDivisionError), served_cache(model, cache):
        1 / 0  # noqa: B018
    assert dict(ALL_ATTENTION_FUNCTIONS) == before


def test_another_model_keeps_its_own_cache_meanwhile():
    model, other = tiny("llama"), tiny("qwen3")
    with torch.inference_mode():
        plain = other(IDS, use_cache=False).logits
        with served_cache(model, kv_cache("q4_0")):
            assert torch.equal(other(IDS, use_cache=False).logits, plain)
            model(IDS, use_cache=False)


def test_only_the_layers_that_are_named():
    model = tiny("llama")
    with torch.inference_mode(), served_cache(model, kv_cache({1: "none/q4_0"})) as seen:
        model(IDS, use_cache=False)
    assert seen.layers == {1} and seen.facts() == {"layers": 1}


def test_fp8_takes_scales_and_counts_what_is_cut_off():
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight.mul_(1e4)
    with torch.inference_mode():
        plain = model(IDS, use_cache=False).logits
        with served_cache(model, kv_cache("fp8")) as seen:
            cut = model(IDS, use_cache=False).logits
        scales = {(1, "values"): 1e4}
        with served_cache(model, kv_cache("fp8"), scales) as scaled:
            kept = model(IDS, use_cache=False).logits
    # A quarter of all numbers are the values of layer 1.
    found = seen.facts()
    assert 0.2 < found["saturated"] < 0.25 and found["saturated_layer"] == "values of layer 1"
    assert found["saturated_most"] == pytest.approx(4 * found["saturated"])
    assert found["scales"] is False
    assert scaled.facts()["scales"] is True and scaled.facts()["saturated_most"] == 0
    assert (kept - plain).norm() < 0.2 * (cut - plain).norm()


@pytest.mark.parametrize(
    ("architecture", "more", "spec", "said"),
    [
        ("mamba", {}, "q8_0", "kv_cache=q8_0: MambaForCausalLM is a model without attention"),
        ("deepseek_v2", {}, "fp8", "DeepseekV2ForCausalLM caches a latent in place of keys"),
        ("bloom", {}, "int8", "attends in a way of its own, none of its layers goes through"),
        ("lfm2", {}, {0: "q8_0"}, r"layer 0 of Lfm2ForCausalLM is no attention \(conv\)"),
        ("llama", {}, {2: "q8_0"}, "has no layer 2, its 2 layers are 0 to 1"),
        ("gemma3n_text", {}, {5: "q8_0"}, r"layer 5 of .* reads the cache of layer 2; name that"),
        ("llama", {"head_dim": 40}, "q4_0", r"blocks of 32 \(q4_0\) do not divide the heads .* 40"),
        ("llama", {"head_dim": 40}, "fp8/nvfp4", r"blocks of 16 \(nvfp4\) do not divide"),
    ],
)
def test_what_no_cache_of_this_kind_can_have_is_one_line(architecture, more, spec, said):
    model = tiny(architecture, **more)
    with (
        pytest.raises(IncompatibleTrial, match=said) as caught,
        served_cache(model, kv_cache(spec)),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_heads_of_any_size_suit_types_without_blocks():
    model = tiny("llama", head_dim=40)
    with torch.inference_mode(), served_cache(model, kv_cache("fp8/int8")) as seen:
        model(IDS, use_cache=False)
    assert seen.layers == {0, 1}


def test_a_layer_that_was_left_out_of_the_run_is_told():
    model = tiny("llama")
    told = pytest.raises(IncompatibleTrial, match="none of its layers goes through")
    with told, served_cache(model, kv_cache("q4_0")):
        pass  # nothing is run
