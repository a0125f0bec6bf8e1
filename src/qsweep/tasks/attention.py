"""How far a model is ordinary causal attention: only there can continuations share a context."""

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNLIMITED = 2**62

# Nats by which a log-probability may differ between two ways to compute it: rounding stays well
# below, a wrong mask or position lies well above.
_ROUNDING = {"float32": 1e-3, "float16": 0.06, "bfloat16": 0.5}

# Layers that see all before them, up to a window at most. Every other kind keeps a state or picks
# what it sees, so that a branch would see its neighbours whatever a mask says.
_PLAIN_LAYERS = {
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "sparse",
    "dense",
    "moe",
}
# Where configurations say how far a layer sees (Mistral, Gemma; Llama 4; RecurrentGemma; GPT-Neo).
_WINDOWS = (
    "sliding_window",
    "attention_chunk_size",
    "attention_window_size",
    "local_attention",
    "window_size",
)
# How many keys a layer picks (Doge; DeepSeek 3.2).
_CHOOSING = ("keep_window_size", "index_topk")
# Rotary embeddings whose frequencies depend on the length of what is run.
_LENGTH_DEPENDENT = ("longrope", "dynamic", "su")


def full_attention_span(model: "PreTrainedModel", body: str | None = None) -> int:
    """Tokens within which one causal mask and position ids say all that a model's layers see.

    Beyond, a window of some layer ends or its frequencies change; 0 for a model that is not told by
    mask and position ids at all: recurrent layers, sparse selections, ALiBi.

    Args:
        model: A causal language model.
        body: The name of the part that is run, None for the whole.
    """
    config = model.config.get_text_config()
    if is_recurrent(model) or _alibi(config):
        return 0
    if not takes(model if body is None else model.get_submodule(body), "position_ids"):
        return 0
    return min([UNLIMITED, *windows(config), *rope_boundaries(config)])


def takes(module: Any, name: str) -> bool:
    """Whether what a module runs has an argument of this name."""
    return name in inspect.signature(module.forward).parameters


def rounding(dtype: Any) -> float:
    """Nats by which a token's log-probability may differ by rounding, in a torch dtype."""
    return _ROUNDING.get(str(dtype).removeprefix("torch."), 0.5)


def is_recurrent(model: "PreTrainedModel") -> bool:
    """Whether some layer carries a state along, or chooses by content what it sees."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    chooses = any(value for name in _CHOOSING for value in of_layers(config, name))
    return bool(getattr(model, "_is_stateful", False)) or chooses or not kinds <= _PLAIN_LAYERS


def rope_boundaries(config: Any) -> Iterator[int]:
    """Lengths beyond which rotary frequencies are others, for the whole of what is run."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # One set of parameters, or one per kind of layer.
    for rope in (found, *found.values()):
        if isinstance(rope, Mapping) and _kind(rope) in _LENGTH_DEPENDENT:
            names = ("original_max_position_embeddings", "max_position_embeddings")
            given = [rope.get(names[0]), *(getattr(config, name, None) for name in names)]
            yield next((int(n) for n in given if isinstance(n, int) and n > 0), 0)


def _kind(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type") or rope.get("type")


def windows(config: Any) -> Iterator[int]:
    """How many tokens the layers with the shortest sight see, by all that a configuration says."""
    for value in (value for name in _WINDOWS for value in of_layers(config, name)):
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield value


def of_layers(config: Any, name: str) -> list[Any]:
    """What a configuration says under a name: one value, or each layer's where layers differ."""
    try:
        return [getattr(config, name, None)]
    except RuntimeError:  # transformers' word for a value that no layer need have
        return [getattr(layer, name, None) for layer in config.per_layer_config]


def keeps_rope_length(model: "PreTrainedModel") -> bool:
    """Whether rotary frequencies go by the longest text that was run, until a short one is."""
    config = model.config.get_text_config()
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = (_kind(rope) for rope in (found, *found.values()) if isinstance(rope, Mapping))
    return "dynamic" in kinds


def reset_rope_length(model: "PreTrainedModel") -> None:
    """Have a model run the next text as if it were the first: see :func:`keeps_rope_length`."""
    import torch

    if keeps_rope_length(model):
        run: Any = model
        run(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)


def _alibi(config: Any) -> bool:
    # Its bias goes by the place in the row, not by position ids.
    inner = getattr(config, "attn_config", None)
    flags = (getattr(config, "alibi", False), getattr(inner, "alibi", False))
    return any(flags) or getattr(config, "position_embedding_type", None) == "alibi"
