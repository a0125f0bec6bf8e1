"""What a checkpoint is, read from ``config.json`` and the headers of its safetensors files.

Nothing is imported and no weight is read, so an answer takes milliseconds at any size.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.models.architecture import expert_counts, holds_experts, require_language_model
from qsweep.models.config import (
    LENGTHS,
    check_config,
    check_sizes,
    read_config,
    read_json,
    text_config,
)
from qsweep.models.files import (
    check_directory,
    index_file,
    standard_directory,
    weight_files,
    weight_map,
)
from qsweep.models.roles import is_linear_layer, kept_as
from qsweep.models.safetensors_header import DTYPE_BITS, TensorHeader, read_header, same_content
from qsweep.models.source import ModelFacts
from qsweep.models.stacks import stacked_linears, stored_twice, unread_experts

__all__ = [
    "CONV1D_TYPES", "DTYPE_BITS", "TensorHeader", "distinct_weights", "has_experts", "is_partial",
    "read_config", "read_facts", "read_outline", "read_tensors", "text_config", "weight_files",
]  # fmt: skip

# Their linear layers are transformers' Conv1D, which stores (in_features, out_features).
CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})

OUTLINE, ABSENT = "qsweep-outline.json", "not-here.safetensors"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_TOKENIZER_PATTERNS = ("tokenizer_config.json", "*.tiktoken", "tekken.json", "sentencepiece*.model")
_DEFAULT_LENGTHS = {"gemma3": 131072, "gemma3_text": 131072, "mistral3": 131072}
_FALLBACK_LENGTH = 2048

# A layer of the decoder has its number as one part of the name: model.layers.7.mlp.up_proj.
_NUMBERED = re.compile(r"(?:^|\.)\d+\.")
_NOT_DECODER = re.compile(r"(^|[._])(vision|visual|audio|image|vit|projector|mtp)([._]|$)")
# Layers of DeepSeek's and GLM's that are numbered on from the decoder's, and what tells them from those.
FURTHER_TOKENS = re.compile(r"^(.*\.\d+)\.(eh_proj|enorm|hnorm|shared_head)\.")
_TEXT_PART = re.compile(r"(^|\.)(language_model|text_model|llm)\.")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|embed_in|wte|(word|tok)_embeddings)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
_CODES = frozenset(n for n in DTYPE_BITS if n.startswith(("I", "U", "BOOL", "F8", "F4", "F6")))
_BUFFER = re.compile(r"(rotary_emb\.inv_freq|masked_bias|\.attn\.bias|attention\.bias)$")


def read_facts(path: Path, name: str) -> ModelFacts:
    """Find out what the unquantized model in the directory ``path`` is.

    Raises:
        ConfigError: the directory holds no usable model: no ``config.json`` or one that contradicts
            itself, no tokenizer, weights that are pickled, quantized, missing or cut short.
        IncompatibleTrial: transformers builds no language model of its type.
    """
    config = read_config(path)
    check_directory(path)
    check_config(path / "config.json", config)
    _refuse_quantized(path, config)
    require_language_model(config, name)
    _require_tokenizer(path)
    tensors = read_tensors(path)
    _refuse_codes(tensors)
    check_sizes(path / "config.json", config, [info.shape for info in tensors.values()])
    model_type = str(config.get("model_type", ""))
    text = text_config(config)
    if text.get("tie_word_embeddings") is True:
        _refuse_odd_heads(tensors)
    decoder = dict(_decoder_shapes(tensors))
    if twice := stored_twice(decoder):
        one, other = twice
        raise ConfigError(
            f"{path}: {one} has an expert's weights and {other} those of all; leave one of them out"
        )
    counts = expert_counts(text)
    linears = dict(_linears(tensors, transposed=model_type in CONV1D_TYPES))
    linears |= stacked_linears(decoder)
    return ModelFacts(
        name=name,
        path=path,
        model_type=model_type,
        linears={name: shape for name, shape in linears.items() if kept_as(name) is None},
        parameters=sum(info.count for info in distinct_weights(tensors, config).values()),
        max_length=_max_length(text, model_type),
        vocab_size=_vocab_size(tensors, text, path),
        experts=holds_experts(decoder.items(), counts),
        unread_experts=tuple(unread_experts(decoder, counts)),
        kept={name: shape for name, shape in linears.items() if kept_as(name) is not None},
    )


def is_embedding(name: str) -> bool:
    """Whether a tensor is called as an embedding of tokens is."""
    return _EMBEDDING.search(name) is not None


def is_buffer(name: str) -> bool:
    """Whether a tensor is a constant that old checkpoints store: rotary frequencies, masks."""
    return _BUFFER.search(name) is not None


def is_head(name: str) -> bool:
    """Whether a tensor is called as an output head is, and is no part of a layer."""
    return _HEAD.search(name) is not None and _NUMBERED.search(name) is None


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether a configuration speaks of experts: a hint, where nobody looked at the weights."""
    return bool(expert_counts(text_config(config)))


def read_tensors(path: Path, files: Sequence[Path] | None = None) -> dict[str, TensorHeader]:
    """All tensors of a checkpoint by name, from the files' headers.

    Args:
        path: Its directory.
        files: Its weight files; by default those that transformers loads.

    Raises:
        ConfigError: a file is missing or damaged, holds a tensor that another one holds too, or
            lacks one that the index says it has.
    """
    tensors: dict[str, TensorHeader] = {}
    for file in weight_files(path) if files is None else files:
        header = read_header(file)
        if twice := next((name for name in header if name in tensors), None):
            other = tensors[twice].file
            raise ConfigError(f"{file}: {twice} lies in {other.name} too; which one counts?")
        tensors |= header
    if index_file(path) is not None:
        for name, place in weight_map(path).items():
            if name not in tensors:
                raise ConfigError(f"{path / place}: lacks {name}, which the index says it has")
    return tensors


def is_partial(path: Path) -> bool:
    """Whether a directory holds no more of a model than its head: what a reference pack has of it."""
    return (path / OUTLINE).is_file()


def read_outline(path: Path) -> dict[str, TensorHeader]:
    """All tensors of a checkpoint by name, also of one that lies here in part.

    A directory of a model of which little more than its head is here says in ``qsweep-outline.json``
    which tensors the whole has. Those that are not here lie in a file that does not exist.

    Raises:
        ConfigError: as :func:`read_tensors`; the outline is none.
    """
    file = path / OUTLINE
    if not is_partial(path):
        return read_tensors(path)
    content = read_json(file)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{file}: holds no JSON object")
    here = read_tensors(path) if any(path.glob("*.safetensors")) else {}
    absent = {
        name: TensorHeader(tuple(shape), dtype, path / ABSENT)
        for name, (dtype, shape) in content.items()
    }
    return absent | {name: info for name, info in here.items() if name in absent}


def distinct_weights(
    tensors: Mapping[str, TensorHeader], config: Mapping[str, Any]
) -> dict[str, TensorHeader]:
    """The tensors without a head that only repeats the embedding, and without constant buffers.

    A stored head that differs from the embedding is one of its own whatever the configuration says:
    transformers ties only what is equal.
    """
    kept = {name: info for name, info in tensors.items() if not _BUFFER.search(name)}
    for head in _repeated_heads(kept, config):
        del kept[head]
    return kept


def contradicts_tying(tensors: Mapping[str, TensorHeader], config: Mapping[str, Any]) -> bool:
    """Whether a configuration says that the head is the embedding, and the weights that it is not."""
    tied = text_config(config).get("tie_word_embeddings")
    return tied is True and any(not same for _, same in _stored_heads(tensors))


def corrected_config(path: Path) -> dict[str, Any]:
    """The model's ``config.json``, put right where it says that the head is tied and it is not.

    Others than transformers believe the configuration and leave the stored head out.
    """
    config = read_config(path)
    if not contradicts_tying(read_tensors(path), config):
        return config
    parts = {
        name: {**part, "tie_word_embeddings": False}
        for name, part in config.items()
        if isinstance(part, Mapping) and "tie_word_embeddings" in part
    }
    return {**config, **parts, "tie_word_embeddings": False}


def readable_directory(path: Path, folder: Path) -> Path:
    """The model for a library that reads the directory by itself; see :func:`standard_directory`."""
    config = corrected_config(path)
    return standard_directory(path, folder, config if config != read_config(path) else None)


def _repeated_heads(
    tensors: Mapping[str, TensorHeader], config: Mapping[str, Any]
) -> Iterator[str]:
    # Tied is transformers' default, so a configuration may leave it out.
    if text_config(config).get("tie_word_embeddings", True):
        yield from [head for head, same in _stored_heads(tensors) if same]


def _stored_heads(tensors: Mapping[str, TensorHeader]) -> Iterator[tuple[str, bool]]:
    # Each head of the embedding's shape, and whether it is the embedding.
    embedding = next((info for name, info in tensors.items() if _EMBEDDING.search(name)), None)
    for name, info in tensors.items():
        if embedding is not None and _HEAD.search(name) and info.shape == embedding.shape:
            stamps = [info.file.stat().st_mtime_ns, embedding.file.stat().st_mtime_ns]
            yield name, _same(info, embedding, *stamps)


@lru_cache(maxsize=64)
def _same(one: TensorHeader, other: TensorHeader, *stamps: int) -> bool:
    return same_content(one, other)


def is_of_text(name: str) -> bool:
    """Whether a tensor is of the language model: no vision tower's, no audio encoder's, no MTP's."""
    return _NOT_DECODER.search(name) is None


def other_parts(tensors: Mapping[str, TensorHeader]) -> list[str]:
    """Parts of a model beside its decoder that hold matrices: a vision tower, an audio encoder."""
    decoder = set(_in_decoder(tensors))
    others = [
        name.removesuffix(".weight")
        for name, info in tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2
        if name not in decoder and (_NUMBERED.search(name) or _NOT_DECODER.search(name))
    ]
    return parts_beside(decoder, others)


def parts_beside(decoder: Iterable[str], others: Iterable[str]) -> list[str]:
    """The largest parts of a model that hold some of its modules and none of the decoder's.

    Each with ``model.`` before its name and without: one is what transformers has in memory, the other
    what older checkpoints and vLLM have.

    >>> parts_beside(["model.language_model.layers.0.mlp.up_proj"], ["model.visual.blocks.0.mlp.fc1"])
    ['model.visual', 'visual']

    Args:
        decoder: Names of the decoder's modules or tensors.
        others: Names of modules that are none of it.
    """
    above = {head for name in decoder for head in _heads(name)}
    parts = {next((head for head in _heads(name) if head not in above), name) for name in others}
    bare = {part.removeprefix("model.") for part in parts}
    return sorted({*bare, *(f"model.{part}" for part in bare)})


def _heads(name: str) -> Iterator[str]:
    # a.b.c is below a, a.b
    parts = name.split(".")
    yield from (".".join(parts[:count]) for count in range(1, len(parts)))


def _decoder_shapes(
    tensors: Mapping[str, TensorHeader],
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in _in_decoder(tensors):
        yield name, tensors[name].shape


def _in_decoder(names: Iterable[str]) -> Iterator[str]:
    """The names of what lies in a layer of the decoder that runs: in none that predicts further tokens."""
    names = list(names)
    further = tuple({f"{m.group(1)}." for name in names if (m := FURTHER_TOKENS.match(name))})
    numbered = [n for n in names if _NUMBERED.search(n) and not _NOT_DECODER.search(n)]
    numbered = [n for n in numbered if not n.startswith(further)] if further else numbered
    # Where one part is called the text's, all others are not, whatever they are called.
    yield from [n for n in numbered if _TEXT_PART.search(n)] or numbered


def _linears(
    tensors: Mapping[str, TensorHeader], *, transposed: bool
) -> Iterator[tuple[str, tuple[int, int]]]:
    for name in _in_decoder(tensors):
        layer, shape = name.removesuffix(".weight"), tensors[name].shape
        if layer == name or len(shape) != 2 or not is_linear_layer(layer):
            continue
        rows, columns = shape
        yield layer, (columns, rows) if transposed else (rows, columns)


def _max_length(text: Mapping[str, Any], model_type: str) -> int:
    for key in LENGTHS:
        if isinstance(text.get(key), int) and text[key] > 0:
            return int(text[key])
    return _DEFAULT_LENGTHS.get(model_type, _FALLBACK_LENGTH)


def _vocab_size(tensors: Mapping[str, TensorHeader], text: Mapping[str, Any], path: Path) -> int:
    # What the head really has counts, not what a configuration says or leaves to a default. A layer's
    # own output is no head; of several, that of the text is the largest, and a voice's is small.
    for pattern in (_HEAD, _EMBEDDING):
        rows = [
            info.shape[0]
            for name, info in tensors.items()
            if pattern.search(name) and len(info.shape) == 2 and not _NUMBERED.search(name)
        ]
        if rows:
            return max(rows)
    if isinstance(text.get("vocab_size"), int):
        return int(text["vocab_size"])
    raise ConfigError(f"{path}: no embedding among its weights, so it is no causal language model")


def _refuse_quantized(path: Path, config: Mapping[str, Any]) -> None:
    quantized = config.get("quantization_config")
    if quantized is None:
        quantized = text_config(config).get("quantization_config")
    if quantized == {}:
        raise ConfigError(
            f"{path / 'config.json'}: an empty quantization_config, of which transformers wants a "
            "quant_method; take it out if the weights are not quantized"
        )
    if quantized is not None:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "?"
        raise ConfigError(
            f"{path}: already quantized ({method}); give the unquantized model it was made from"
        )


def _refuse_codes(tensors: Mapping[str, TensorHeader]) -> None:
    # transformers casts them, and codes without their scales are another model's weights. Experts'
    # have names of many kinds: gate_up_proj_blocks, 0.down_proj.qweight.
    for name, info in tensors.items():
        weight = name.endswith((".weight", ".bias")) or "experts" in name.split(".")
        if weight and info.dtype in _CODES and not _BUFFER.search(name):
            raise ConfigError(
                f"{info.file}: {name} holds {info.dtype}, which are codes and no weights; "
                "give the unquantized model they were made from"
            )


def _refuse_odd_heads(tensors: Mapping[str, TensorHeader]) -> None:
    # What tying them comes to is an error deep inside of transformers.
    outside = [n for n in tensors if not _NUMBERED.search(n) and not _NOT_DECODER.search(n)]
    embedding = next((name for name in outside if _EMBEDDING.search(name)), None)
    for name in outside if embedding is not None else ():
        head, other = tensors[name], tensors[embedding or name]
        if _HEAD.search(name) and head.shape != other.shape:
            raise ConfigError(
                f"{head.file}: {name} has the shape {list(head.shape)}, and config.json ties it to "
                f"{embedding}, of {list(other.shape)}"
            )


def _require_tokenizer(path: Path) -> None:
    if any((path / name).is_file() for name in _TOKENIZER_FILES):
        return
    if any(next(path.glob(pattern), None) for pattern in _TOKENIZER_PATTERNS):
        return
    raise ConfigError(
        f"{path}: no tokenizer (tokenizer.json or tokenizer.model); copy it beside config.json"
    )
