"""A model's ``config.json``, and what is wrong with one that contradicts itself.

Only what can be told from the numbers alone; whether they fit the weights is for
:mod:`qsweep.models.check`.
"""

import contextlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.base.files import NotRegularFile, read_regular
from qsweep.base.schema import flat
from qsweep.models.architecture import EXPERT_KEYS

# How configurations call what they count.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTHS = (
    *("hidden_size", "n_embd", "d_model", "vocab_size", "head_dim"),
    *("num_attention_heads", "n_head", "n_heads", "num_key_value_heads"),
)
_INNER_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size")
LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx")
# Whole numbers, with the least that makes sense. Some architectures give one for each layer.
_COUNTS = {
    **dict.fromkeys((*_LAYERS, *_WIDTHS), 1),
    **dict.fromkeys((*_INNER_WIDTHS, *EXPERT_KEYS, "num_experts_per_tok", "sliding_window"), 0),
    # A window of one token predicts nothing.
    **dict.fromkeys(LENGTHS, 2),
}
# Numbers, and whether zero is one that makes sense.
_NUMBERS = {
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"), True),
    **dict.fromkeys(("rope_theta", "rotary_emb_base"), False),
}
# Of what a checkpoint has a tensor each, or a number each. Up to here they cost no more than a look
# at the weights' names: parts that a checkpoint leaves out have sizes in its configuration, too.
_MANY_LAYERS, _LARGE = 1000, 10_000_000
_SIZES = (*_WIDTHS, *_INNER_WIDTHS, *EXPERT_KEYS, "image_size", "patch_size", "num_channels")
# What a model can be built in. Text alone: nothing else survives JSON.
_DTYPES = ("float32", "bfloat16", "float16", "float64")
# Parts of numbers, by kind of layer in some architectures.
_ROTARY = ("rope_parameters", "rope_scaling")
_PARTS = ("text_config", "llm_config")


def read_json(file: Path) -> Any:
    """The content of a JSON file of a model. Raises ConfigError where there is none to be read."""
    try:
        with file_errors(file):
            return json.loads(read_regular(file).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be read as JSON ({error})") from error


@contextlib.contextmanager
def file_errors(file: Path) -> Iterator[None]:
    """Say of a model's file in one line why it cannot be opened. Raises ConfigError."""
    try:
        yield
    except NotRegularFile as error:
        raise ConfigError(f"{file}: {error}; a model's files are read from here") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error


def read_config(path: Path) -> dict[str, Any]:
    """The model's ``config.json``. Raises ConfigError where there is none that can be read."""
    file = path / "config.json"
    if not path.is_dir():
        raise ConfigError(f"{path}: no such directory")
    if not file.exists():
        raise ConfigError(
            f"{path}: no config.json, so this is not a Hugging Face model; "
            "point at the directory that holds config.json and *.safetensors"
        )
    config = read_json(file)
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: holds no JSON object")
    return config


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part that describes the language model, also where a model has other parts too."""
    inner = config.get("text_config") or config.get("llm_config") or {}
    return {**config, **inner}


def check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that no model can have.

    Args:
        file: Where it was read, to be named.
        config: Its content.

    Raises:
        ConfigError: names the first field that is wrong, and its value.
    """
    for part in _PARTS:
        if not isinstance(config.get(part) or {}, Mapping):
            raise ConfigError(
                f"{file}: {part} is {json_excerpt(config[part])}, where an object belongs"
            )
    problem = next(_problems(config, text_config(config)), None)
    if problem is not None:
        raise ConfigError(f"{file}: {problem}")


def check_sizes(file: Path, config: Mapping[str, Any], shapes: Collection[Sequence[int]]) -> None:
    """Refuse sizes that are beyond all weights, before somebody makes room for them.

    Args:
        file: Where the configuration was read, to be named.
        config: Its content.
        shapes: Those of all stored tensors.

    Raises:
        ConfigError: names the field and its value.
    """
    numbers = sum(math.prod(shape) for shape in shapes)
    limits = dict.fromkeys(_LAYERS, (len(shapes), _MANY_LAYERS, "tensors"))
    limits |= dict.fromkeys(_SIZES, (numbers, _LARGE, "weights"))
    for place, part in _with_parts(config):
        for name, (count, harmless, what) in limits.items():
            value = part.get(name)
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, int | float) and one > max(count, harmless):
                    raise ConfigError(
                        f"{file}: {place}{name} is {json_excerpt(one)}, but there are {count} {what} in all"
                    )


def _problems(config: Mapping[str, Any], text: Mapping[str, Any]) -> Iterator[str]:
    for place in _not_a_number("", config):
        yield f"{place} is NaN, which is no setting"
    model_type, code = config.get("model_type"), config.get("auto_map")
    if not isinstance(model_type, str) and not (isinstance(code, Mapping) and "AutoConfig" in code):
        wrong = (
            "has no model_type"
            if model_type is None
            else f"model_type is {json_excerpt(model_type)}"
        )
        yield f"{wrong}, which says what architecture it is (llama, qwen3, …)"
    for place, part in _with_parts(config):
        if place and not isinstance(part.get("model_type") or "", str):
            yield f"{place}model_type is {json_excerpt(part['model_type'])}, where a name belongs"
    if "transformers_weights" in config:
        yield (
            "transformers_weights names another file of weights, which only transformers reads; "
            "name that file model.safetensors and take the field out"
        )
    tied = text.get("tie_word_embeddings")
    if tied is not None and not isinstance(tied, bool):
        yield f"tie_word_embeddings is {json_excerpt(tied)}, where true or false belongs"
    for name in ("dtype", "torch_dtype"):
        value = text.get(name)
        if value is not None and value not in _DTYPES:
            yield f"{name} is {json_excerpt(value)}, where one of {', '.join(_DTYPES)} belongs"
    # Of latent attention without rotary embeddings.
    fewest = {**_COUNTS, "head_dim": 0} if text.get("kv_lora_rank") else _COUNTS
    for name, least in fewest.items():
        value = text.get(name)
        for one in value if isinstance(value, list) else [value]:
            if one is None:
                continue
            # A whole number that is written with a point is for the architecture to judge.
            number = isinstance(one, int | float) and not isinstance(one, bool)
            if not number or (isinstance(one, float) and not one.is_integer()):
                yield f"{name} is {json_excerpt(one)}, where a whole number belongs"
            elif one < (min(least, 0) if isinstance(value, list) else least):
                yield f"{name} is {json_excerpt(one)}, which must be at least {least}"
    parts = {n: text[n] for n in _ROTARY if isinstance(text.get(n), Mapping)}
    for name, value in (*text.items(), *flat(parts)):
        zero = _NUMBERS.get(name.rpartition(".")[2])
        if zero is None or value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
            yield f"{name} is {json_excerpt(value)}, where a number belongs"
        elif value < 0 or (value == 0 and not zero):
            yield f"{name} is {json_excerpt(value)}, which must be {'at least' if zero else 'above'} 0"
    heads, pairs = text.get("num_attention_heads"), text.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(pairs, int) and heads % pairs:
        yield f"num_attention_heads is {heads}, no multiple of num_key_value_heads, {pairs}"
    experts, chosen = (
        next((text[n] for n in EXPERT_KEYS if text.get(n)), None),
        "num_experts_per_tok",
    )
    if isinstance(experts, int) and isinstance(text.get(chosen), int) and text[chosen] > experts:
        yield f"{chosen} is {text[chosen]}, of {experts} experts"


def _with_parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A configuration, and those in it of a text, of images, of sounds, each with its place."""
    yield "", config
    for name, part in config.items():
        if name.endswith("_config") and isinstance(part, Mapping):
            yield f"{name}.", part


def _not_a_number(place: str, value: Any) -> Iterator[str]:
    if isinstance(value, float) and math.isnan(value):
        yield place
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _not_a_number(f"{place}.{name}" if place else str(name), inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _not_a_number(f"{place}[{number}]", inner)


def json_excerpt(value: Any) -> str:
    """A field's value as it stands in the file, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"
