"""Random-weight models, made on the device: the shapes of Llama, and sizes of four miniatures."""

from pathlib import Path
from typing import Any

from miniatures import copy_tokenizer

_LLAMA_3 = {
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# The shapes of Llama-3.2-1B and Llama-3.1-8B by their config.json, and one to try the code with.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {
        **_LLAMA_3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "rope_parameters": {**_ROPE, "factor": 32.0},
    },
    "llama-8b": {
        **_LLAMA_3,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
        "rope_parameters": {**_ROPE, "factor": 8.0},
    },
    "trial": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
}

# What K-quants' blocks of 256 divide.
_MINIATURE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
}
MINIATURES: dict[str, dict[str, Any]] = {
    "llama": _MINIATURE | {"tie_word_embeddings": False},
    "qwen3": _MINIATURE | {"tie_word_embeddings": True},
    "mistral": _MINIATURE | {"tie_word_embeddings": False},
    "gemma3_text": _MINIATURE | {"query_pre_attn_scalar": 64, "sliding_window": 256},
}


def make_model(shape: str, device: str, layers: int | None = None) -> Any:
    """A model of that shape with weights drawn on the device; perhaps with fewer layers."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    settings = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**settings), dtype=dtype)
    model.config.use_cache = False
    return model.eval().requires_grad_(False)


def save_model(model: Any, path: Path) -> Path:
    """As a checkpoint in bfloat16, with the embedded model's tokenizer (any would do)."""
    import torch

    model.to(torch.bfloat16).save_pretrained(path)
    copy_tokenizer(path)
    return path


def random_windows(count: int, context: int, vocabulary: int) -> Any:
    """Windows of random ids, every position but the first scored, as the preset ``paper`` does."""
    import torch

    from qsweep.text.windows import PRESETS, Windows

    ids = torch.randint(vocabulary, (count, context), generator=torch.Generator().manual_seed(0))
    full = torch.full((count,), context)
    preset = PRESETS["paper"].override(context=context)
    return Windows(ids, torch.ones_like(full), full, preset, "none")


def random_samples(count: int, length: int, vocabulary: int) -> Any:
    """Calibration text of random ids."""
    import torch

    from qsweep.text.calibration import CalibrationTokens

    ids = torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(1))
    return CalibrationTokens(ids.tolist())
