"""What a checkpoint is, read from ``config.json`` and the headers of its safetensors files.

Nothing is imported and no weight is read, so an answer takes milliseconds at any size.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsweep.architecture import expert_counts, holds_experts, require_language_model
from qsweep.errors import ConfigError
from qsweep.quantizers import ModelFacts

# Stored bits per element: https://github.com/huggingface/safetensors#format
DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    "F4": 4,
}
# Their linear layers are transformers' Conv1D, which stores (in_features, out_features).
CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})

_INDEX = "model.safetensors.index.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_TOKENIZER_PATTERNS = ("tokenizer_config.json", "*.tiktoken", "tekken.json", "sentencepiece*.model")
_PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx")
_DEFAULT_LENGTHS = {"gemma3": 131072, "gemma3_text": 131072, "mistral3": 131072}
_FALLBACK_LENGTH = 2048

# A layer of the decoder has its number as one part of the name: model.layers.7.mlp.up_proj.
_NUMBERED = re.compile(r"(?:^|\.)\d+\.")
_NOT_DECODER = re.compile(r"(^|[._])(vision|visual|audio|image|vit|projector|mtp)([._]|$)")
_TEXT_PART = re.compile(r"(^|\.)(language_model|text_model|llm)\.")
# Two-dimensional weights in a layer that are no linear layer, or that no method quantizes.
_NOT_LINEAR = re.compile(r"(norm|embed\w*|wte|wpe|relative_attention_bias|router|\.gate)$")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|embed_in|wte|(word|tok)_embeddings)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
_BUFFER = re.compile(r"(rotary_emb\.inv_freq|masked_bias|\.attn\.bias|attention\.bias)$")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it: F32, BF16, I32."""
    file: Path

    @property
    def count(self) -> int:
        """Number of elements."""
        total = 1
        for size in self.shape:
            total *= size
        return total

    @property
    def bits(self) -> int:
        """Stored bits, all elements together."""
        return self.count * DTYPE_BITS[self.dtype]


def read_facts(path: Path, name: str) -> ModelFacts:
    """Find out what the unquantized model in the directory ``path`` is.

    Raises:
        ConfigError: the directory holds no usable model: no ``config.json``, no tokenizer, weights
            that are pickled, quantized, missing or cut short.
        IncompatibleTrial: transformers builds no language model of its type.
    """
    config = read_config(path)
    _refuse_quantized(path, config)
    require_language_model(config, name)
    _require_tokenizer(path)
    tensors = read_tensors(path)
    model_type = str(config.get("model_type", ""))
    text = text_config(config)
    return ModelFacts(
        name=name,
        path=path,
        model_type=model_type,
        linears=dict(_linears(tensors, transposed=model_type in CONV1D_TYPES)),
        parameters=sum(info.count for info in distinct_weights(tensors, config).values()),
        max_length=_max_length(text, model_type),
        vocab_size=_vocab_size(tensors, text, path),
        experts=holds_experts(_decoder_shapes(tensors), expert_counts(text)),
    )


def read_config(path: Path) -> dict[str, Any]:
    """The model's ``config.json``. Raises ConfigError where there is none that can be read."""
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not path.is_dir():
            raise ConfigError(f"{path}: no such directory") from error
        raise ConfigError(
            f"{path}: no config.json, so this is not a Hugging Face model; "
            "point at the directory that holds config.json and *.safetensors"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: holds no JSON object")
    return config


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part that describes the language model, also where a model has other parts too."""
    inner = config.get("text_config") or config.get("llm_config") or {}
    return {**config, **inner}


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether a configuration speaks of experts: a hint, where nobody looked at the weights."""
    return bool(expert_counts(text_config(config)))


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that make up a checkpoint, in order.

    Raises:
        ConfigError: there are none, or the index names one that is missing.
    """
    index = path / _INDEX
    if index.exists():
        try:
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(places.values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"{index}: not an index of weights ({error!r})") from error
        files = [path / name for name in names]
        for file in files:
            if not file.is_file():
                raise ConfigError(f"{file}: missing, though {_INDEX} names it; fetch it again")
        return files
    files = [path / "model.safetensors"]
    if not files[0].is_file():
        files = sorted(f for f in path.glob("*.safetensors") if not f.name.startswith("adapter"))
    if not files:
        raise ConfigError(_why_no_weights(path))
    return files


def read_tensors(path: Path) -> dict[str, TensorInfo]:
    """All tensors of a checkpoint by name, from the files' headers. Raises ConfigError."""
    tensors: dict[str, TensorInfo] = {}
    for file in weight_files(path):
        tensors.update(_read_header(file))
    return tensors


def distinct_weights(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> dict[str, TensorInfo]:
    """The tensors without a head that only repeats the embedding, and without constant buffers."""
    kept = {name: info for name, info in tensors.items() if not _BUFFER.search(name)}
    embeddings = [name for name in kept if _EMBEDDING.search(name)]
    # Tied is transformers' default, so a configuration may leave it out; the tied copy has the
    # embedding's shape, and where a file stores the head all the same only the setting decides.
    if embeddings and text_config(config).get("tie_word_embeddings", False):
        shape = kept[embeddings[0]].shape
        for name in [n for n in kept if _HEAD.search(n) and kept[n].shape == shape]:
            del kept[name]
    return kept


def _read_header(file: Path) -> Iterator[tuple[str, TensorInfo]]:
    # 8 bytes: length of the header, little-endian; then JSON; then the data.
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > 100_000_000:
                raise ValueError("its header is too long")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        size = file.stat().st_size
        if size != 8 + length + end:
            raise ValueError(f"{size} bytes instead of {8 + length + end}")
        found = {
            name: TensorInfo(tuple(entry["shape"]), entry["dtype"], file)
            for name, entry in header.items()
        }
        unknown = {info.dtype for info in found.values()} - DTYPE_BITS.keys()
        if unknown:
            raise ValueError(f"unknown dtype {sorted(unknown)[0]}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: not a whole safetensors file ({error})") from error
    yield from found.items()


def other_linears(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Matrices in numbered layers of what is no decoder: a vision tower's, an audio encoder's."""
    decoder = set(_in_decoder(tensors))
    return sorted(
        name.removesuffix(".weight")
        for name, info in tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2
        if name not in decoder and (_NUMBERED.search(name) or _NOT_DECODER.search(name))
    )


def _decoder_shapes(
    tensors: Mapping[str, TensorInfo],
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in _in_decoder(tensors):
        yield name, tensors[name].shape


def _in_decoder(names: Iterable[str]) -> Iterator[str]:
    """The names of what lies in a layer of the decoder."""
    numbered = [n for n in names if _NUMBERED.search(n) and not _NOT_DECODER.search(n)]
    # Where one part is called the text's, all others are not, whatever they are called.
    yield from [n for n in numbered if _TEXT_PART.search(n)] or numbered


def _linears(
    tensors: Mapping[str, TensorInfo], *, transposed: bool
) -> Iterator[tuple[str, tuple[int, int]]]:
    for name in _in_decoder(tensors):
        layer, shape = name.removesuffix(".weight"), tensors[name].shape
        if layer == name or len(shape) != 2 or _NOT_LINEAR.search(layer):
            continue
        rows, columns = shape
        yield layer, (columns, rows) if transposed else (rows, columns)


def _max_length(text: Mapping[str, Any], model_type: str) -> int:
    for key in _LENGTHS:
        if isinstance(text.get(key), int) and text[key] > 0:
            return int(text[key])
    return _DEFAULT_LENGTHS.get(model_type, _FALLBACK_LENGTH)


def _vocab_size(tensors: Mapping[str, TensorInfo], text: Mapping[str, Any], path: Path) -> int:
    # What the head really has counts, not what a configuration says or leaves to a default.
    for pattern in (_HEAD, _EMBEDDING):
        for name, info in tensors.items():
            if pattern.search(name) and len(info.shape) == 2:
                return info.shape[0]
    if isinstance(text.get("vocab_size"), int):
        return int(text["vocab_size"])
    raise ConfigError(f"{path}: no embedding among its weights, so it is no causal language model")


def _refuse_quantized(path: Path, config: Mapping[str, Any]) -> None:
    quantized = config.get("quantization_config") or text_config(config).get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "?"
        raise ConfigError(
            f"{path}: already quantized ({method}); give the unquantized model it was made from"
        )


def _require_tokenizer(path: Path) -> None:
    if any((path / name).is_file() for name in _TOKENIZER_FILES):
        return
    if any(next(path.glob(pattern), None) for pattern in _TOKENIZER_PATTERNS):
        return
    raise ConfigError(
        f"{path}: no tokenizer (tokenizer.json or tokenizer.model); copy it beside config.json"
    )


def _why_no_weights(path: Path) -> str:
    for pattern in _PICKLED:
        if (found := next(path.glob(pattern), None)) is not None:
            return (
                f"{path}: only pickled weights ({found.name}), which can run code and are never "
                "loaded; save the model as safetensors, or take a revision that has them"
            )
    if (found := next(path.glob("*.gguf"), None)) is not None:
        return f"{path}: only {found.name}; qsweep starts from unquantized safetensors weights"
    return f"{path}: no *.safetensors file"
