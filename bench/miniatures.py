"""Random-weight miniatures of whatever architecture transformers knows, for benchmarks and tests.

A configuration class is asked which sizes it has, and each gets a small value from one table; so do
the configurations that it is made of (text, vision, audio). Layers of each kind that the class has by
default are there at least once. What no rule can know stands in ``EXCEPTIONS``.
"""

import copy
import shutil
from pathlib import Path
from typing import Any

CAUSAL, IMAGE_TEXT = "AutoModelForCausalLM", "AutoModelForImageTextToText"

# Values by the names of configurations' fields, for all architectures that have such a field.
_WIDTH, _INNER, _HEADS, _HEAD, _EXPERT, _LAYERS = 64, 128, 4, 16, 64, 2
_SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"), 4096),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "embedding_dim"), _WIDTH
    ),
    **dict.fromkeys(("embedding_size", "input_embedding_size", "output_embedding_size"), _WIDTH),
    **dict.fromkeys(
        ("word_embed_proj_dim", "lru_width", "attention_hidden_size", "hidden_size_global"), _WIDTH
    ),
    **dict.fromkeys(("hidden_size_per_layer_input", "backbone_hidden_size"), 32),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "dff", "d_inner", "ffn_dim", "dim_ff"), _INNER
    ),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "shared_intermediate_size"), _INNER),
    **dict.fromkeys(
        ("ffn_hidden_size", "intermediate_size_mlp", "dense_intermediate_size"), _INNER
    ),
    **dict.fromkeys(("feed_forward_size", "local_dim"), _INNER),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"), _LAYERS),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers"), _LAYERS),
    **dict.fromkeys(("num_encoder_layers", "num_layers_per_stack", "num_blocks"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), _HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), _HEADS),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), _HEADS),
    **dict.fromkeys(
        ("attention_heads", "swa_num_attention_heads", "num_attention_heads_per_layer"), _HEADS
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "swa_head_dim", "dim_head"), _HEAD),
    **dict.fromkeys(
        ("attention_head_size", "d_head", "global_head_dim", "query_pre_attn_scalar"), _HEAD
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 256),
    **dict.fromkeys(("context_length", "max_target_positions", "max_source_positions"), 256),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    **dict.fromkeys(("rotary_dim",), 16),
    "is_decoder": True,
    "logit_scale": 1.0,
    "norm_topk_prob": True,
    # Attention over a window, latent attention, and attention to what an indexer picks.
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size"), 32),
    **dict.fromkeys(("sliding_window_size", "local_attention", "attention_chunk_size"), 32),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 32),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim"), 32),
    **dict.fromkeys(("qk_rope_head_dim",), 16),
    **dict.fromkeys(("index_head_dim",), 32),
    "index_n_heads": 4,
    "index_topk": 32,
    # Experts.
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("top_k_experts", "moe_top_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(
        ("moe_num_shared_experts", "first_k_dense_replace", "num_dense_layers", "zero_expert_num"),
        1,
    ),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), _EXPERT),
    **dict.fromkeys(("shared_expert_intermediate_size",), _EXPERT),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "router_hidden_size"), _EXPERT),
    # State spaces and linear attention.
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state"), 16),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 32),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 32),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 4),
    **dict.fromkeys(("mamba_d_ssm",), _INNER),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 32),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    # Towers of what is seen or heard.
    **dict.fromkeys(("image_size",), 28),
    **dict.fromkeys(("embed_dim", "out_hidden_size", "output_dim", "projection_dim"), _WIDTH),
    **dict.fromkeys(("conf_num_attention_heads",), _HEADS),
    **dict.fromkeys(("conf_num_hidden_layers",), _LAYERS),
}
# The standard deviation of a matrix that keeps the size of a vector of so many numbers.
_SPREAD = _WIDTH**-0.5

# By model type, over what the table says; None takes a field out, so that the class decides.
# As wide as its head, and with the latent part a multiple of what words pack.
_LATENT = {"num_key_value_heads": _HEADS, "qk_rope_head_dim": 32, "head_dim": 32}
# Parts without which a configuration cannot be made at all.
_PARTS = {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}}
_TURNED = {"rope_type": "default", "rope_theta": 1e4}
# Parts of another type than a class has by default, as the models that are in use have them.
_OF_TYPE = {"granite4_vision": {"text_config": "granite"}}
_REQUIRED: dict[str, dict[str, Any]] = {
    name: {**_PARTS, "decoder": {"model_type": f"{name}_decoder"}}
    for name in ("musicgen", "musicgen_melody")
}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "youtu"), _LATENT),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "kimi_linear", "longcat_flash"), _LATENT),
    # Layers of each kind, where a class has only one kind by default.
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {
        **{"num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 1},
        **{"expert_layer_period": 2, "expert_layer_offset": 1},
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {
        **{"num_hidden_layers": 4, "moe_layers": [1, 3], "attention_chunk_size": 8192},
        "no_rope_layers": [1, 1, 1, 0],
        "layer_types": [*["chunked_attention"] * 3, "full_attention"],
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "gemma4_text": {"enable_moe_block": True},
    # What llama.cpp takes for granted.
    **dict.fromkeys(
        ("mistral", "mixtral", "ministral3", "phi3", "starcoder2"), {"sliding_window": None}
    ),
    **dict.fromkeys(("dots1", "phi"), {"num_key_value_heads": _HEADS}),
    "olmoe": {"num_key_value_heads": _HEADS, "norm_topk_prob": False},
    "qwen3_moe": {"norm_topk_prob": True},
    # Windows only at the 64 layers of the largest model.
    "exaone4": {"layer_types": ["full_attention"] * 2, "sliding_window": None},
    "laguna": {
        "layer_types": ["full_attention", "sliding_attention"],
        "num_attention_heads_per_layer": [_HEADS] * 2,
    },
    **dict.fromkeys(
        ("qwen3_5_text", "qwen3_5_moe_text"),
        {
            "head_dim": 64,
            "rope_parameters": _TURNED
            | {
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
                "partial_rotary_factor": 0.25,
            },
        },
    ),
    **dict.fromkeys(
        ("qwen3_vl_text", "qwen3_vl_moe_text"),
        {"rope_parameters": _TURNED | {"mrope_section": [4, 2, 2], "mrope_interleaved": True}},
    ),
    "mellum": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _TURNED),
    },
    "afmoe": {
        "layer_types": [*["sliding_attention"] * 3, "full_attention"],
        **{"num_hidden_layers": 4, "mup_enabled": True},
    },
    "smollm3": {
        **{"no_rope_layers": [1, 1, 1, 0], "num_hidden_layers": 4},
        "layer_types": ["full_attention"] * 4,
    },
    "qwen2_moe": {"norm_topk_prob": False},
    "phimoe": {"lm_head_bias": True, "attention_bias": True},
    "minicpm3": {**_LATENT, "v_head_dim": _WIDTH // _HEADS},
    "gpt_oss": {"head_dim": 64},
    "deepseek_v2": {**_LATENT, "norm_topk_prob": False},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"], "num_hidden_layers": 3},
    "xmod": {"default_language": "en_XX"},
    "blt": {"encoder_hash_byte_group_vocab": 512},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": _TURNED | {"mrope_section": [4, 2, 2]},
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {
            **{"hidden_size": _WIDTH, "ffn_hidden_size": _INNER},
            **{"moe_num_experts": 4, "moe_top_k": 2},
        },
    },
    "roc_bert": {"shape_vocab_size": 64, "pronunciation_vocab_size": 64},
    **dict.fromkeys(
        ("glm4v_text", "glm4v_moe_text", "glm46v_text", "glm_ocr_text"),
        {"rope_parameters": _TURNED | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}},
    ),
    **dict.fromkeys(
        ("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text", "hunyuan_vl_text"),
        {"rope_parameters": _TURNED | {"mrope_section": [4, 2, 2]}},
    ),
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [_EXPERT, _EXPERT],
        "rope_parameters": _TURNED | {"mrope_section": [3, 3, 2]},
    },
    "glm5_next_text": {**_LATENT, "qk_rope_head_dim": 0},
    "mistral4": {**_LATENT, "head_dim": 64},
    "radio": {"video_temporal_patch_size": 2},
    "mamba2": {"num_heads": 32, "head_dim": 4},
    "zaya": {"num_experts_per_tok": 1},
    "pegasus": {"scale_embedding": True},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "qwen4_exp_text": {
        **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16},
        **{"indexer_budget": 16, "indexer_compress_ratio": 4, "hc_lowrank": 16},
    },
    "gemma3n_text": {
        **{"num_hidden_layers": 4, "num_kv_shared_layers": 2, "intermediate_size": _INNER},
        "hidden_size_per_layer_input": 256,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
    },
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        **{"num_hidden_layers": 4, "attention_head_dim": 32, "attention_hidden_size": 128},
        "n_mamba_heads": 2,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        **{"num_hidden_layers": 4, "num_key_value_heads": _HEADS},
        **{"attention_head_dim": 32, "attention_hidden_size": 128},
    },
}


def settings_of(model_type: str) -> dict[str, Any]:
    """The fields of a type's configuration, and of its parts, and the small values that they get."""
    import transformers

    return _settings_of(transformers.CONFIG_MAPPING[model_type], model_type)


def _settings_of(config_class: Any, model_type: str) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING

    given = EXCEPTIONS.get(model_type, {})
    # A copy: such a class takes away from what it is given.
    default = config_class(**copy.deepcopy(_REQUIRED.get(model_type, {})))
    fields = set(default.to_dict()) | set(getattr(config_class, "__dataclass_fields__", ()))
    found = {name: value for name, value in _SMALL.items() if name in fields}
    lists, layers = _layer_lists(default)
    if lists:
        found |= lists | {"num_hidden_layers": layers}
    for name in getattr(config_class, "sub_configs", None) or ():
        part = getattr(default, name, None)
        if part is not None:
            kind = _OF_TYPE.get(model_type, {}).get(name, part.model_type)
            made_by = type(part) if kind == part.model_type else CONFIG_MAPPING[kind]
            found[name] = {"model_type": kind, **_settings_of(made_by, kind)}
    found |= given
    return {name: value for name, value in found.items() if name not in given or value is not None}


def _layer_lists(default: Any) -> tuple[dict[str, list[Any]], int]:
    """Lists with an entry per layer, cut so that each combination of entries is there once.

    There are two layers at least.
    """
    count = getattr(default, "num_hidden_layers", None)
    if not isinstance(count, int):
        return {}, 0
    lists = {
        name: value
        for name, value in default.to_dict().items()
        if isinstance(value, list)
        and len(value) == count
        and name not in ("moe_layers", "full_attn_idxs")
    }
    if not lists:
        return {}, 0
    first: dict[tuple[str, ...], int] = {}
    for index in range(count):
        first.setdefault(tuple(str(values[index]) for values in lists.values()), index)
    places = sorted(first.values())
    if len(places) == 1:
        places = [0, 1]
    small = {name: [_SMALL.get(name, values[i]) for i in places] for name, values in lists.items()}
    return small, len(places)


def build(model_type: str, auto: str = CAUSAL, *, seed: int = 0, **settings: Any) -> Any:
    """A model of that type with small sizes: ``settings`` go over what the tables say."""
    import torch
    import transformers

    config = transformers.CONFIG_MAPPING[model_type](**settings_of(model_type) | settings)
    torch.manual_seed(seed)
    model = getattr(transformers, auto).from_config(config)
    model.eval().requires_grad_(False)
    draw_weights(model)
    return model


def draw_weights(model: Any) -> None:
    """Make logits differ, and leave nothing at a value that hides an error.

    Matrices, those of experts among them, grow until they keep a normed vector's size; what is zero is
    drawn. Vectors (norms, biases, sinks, decays) get a tenth of their size of noise.
    """
    import torch

    tied = set()
    persistent = model.state_dict(keep_vars=True)
    for name, tensor in persistent.items():
        if not tensor.is_floating_point() or tensor.data_ptr() in tied:
            continue
        tied.add(tensor.data_ptr())
        noise = torch.randn(tensor.shape)
        with torch.no_grad():
            matrix = tensor.ndim >= 2 and name.rpartition(".")[2] not in ("A_log", "D")
            if matrix and (size := float(tensor.std())) > 0:
                tensor.mul_(min(max(_SPREAD / size, 1.0), 8.0))
            elif matrix:
                tensor.add_(noise, alpha=_SPREAD)
            else:
                tensor.add_(noise * tensor.abs().clamp(min=0.5), alpha=0.1)


def miniature(
    model_type: str, path: Path, auto: str = CAUSAL, dtype: str = "bfloat16", **settings: Any
) -> Path:
    """A checkpoint of that type, with the embedded model's tokenizer beside it."""
    import torch

    model = build(model_type, auto, **settings)
    model.to(getattr(torch, dtype)).save_pretrained(path)
    copy_tokenizer(path)
    return path


def copy_tokenizer(path: Path) -> None:
    """The embedded model's tokenizer, which any vocabulary of 4,096 can have."""
    from qsweep.models.tiny import MODEL_DIR

    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, path / name)
