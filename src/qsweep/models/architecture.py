"""What kind of model a checkpoint holds, told by its configuration and its tensors' names and shapes.

Which class of transformers builds it is looked up in transformers' own tables, which are read as
text: importing them takes seconds, and planning asks for every model of a sweep.
"""

import ast
import importlib.util
import itertools
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import IncompatibleTrial

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CAUSAL, _MULTIMODAL = "AutoModelForCausalLM", "AutoModelForMultimodalLM"
_TABLES = {
    CAUSAL: ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",),
    _MULTIMODAL: (
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
        "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    ),
}
# How configurations call the number of experts.
EXPERT_KEYS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_routed_experts",
    "moe_num_experts",
)


def auto_class(config: Mapping[str, Any]) -> str | None:
    """The automatic class of transformers that builds a language model of this configuration.

    A type that has a class for text alone and one that reads images, too, is built by the one that
    its ``architectures`` name: the checkpoint's tensors are that one's.

    Returns:
        ``AutoModelForCausalLM`` or ``AutoModelForMultimodalLM``; None where transformers knows the
        type and builds no language model of it. A type that it does not know at all counts as
        causal: who loads it says what is missing.

    >>> auto_class({"model_type": "llama"})
    'AutoModelForCausalLM'
    >>> auto_class({"model_type": "qwen2_5_vl"})
    'AutoModelForMultimodalLM'
    >>> auto_class({"model_type": "clip"})
    """
    kind, code, built_as = (config.get(k) for k in ("model_type", "auto_map", "architectures"))
    kind = str(kind or "")
    if isinstance(code, Mapping) and CAUSAL in code:
        return CAUSAL
    tables = _tables()
    found = {
        name: next((tables[t][kind] for t in of if kind in tables.get(t, {})), None)
        for name, of in _TABLES.items()
    }
    own = built_as if isinstance(built_as, list | tuple) else ()
    for name, built in found.items():
        if built is not None and built in own:
            return name
    for name, built in found.items():
        if built is not None:
            return name
    return None if any(kind in table for table in tables.values()) else CAUSAL


def require_language_model(config: Mapping[str, Any], name: str) -> None:
    """Refuse a model that gives no logits of the next token. Raises IncompatibleTrial."""
    kind, found = config.get("model_type"), auto_class(config)
    if found is None:
        raise IncompatibleTrial(
            f"model={name}: transformers builds no language model of the type {kind!r}, so there "
            "are no logits of a next token to measure"
        )
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    if found == _MULTIMODAL and any(part.get("is_encoder_decoder") for part in parts):
        raise IncompatibleTrial(
            f"model={name}: {kind!r} is an encoder with a decoder; qsweep measures decoders that "
            "read the text by themselves"
        )


def load_model(source: Path, config: Any, **options: Any) -> Any:
    """``from_pretrained`` of the automatic class that a checkpoint's configuration asks for."""
    import transformers

    return getattr(transformers, _named(config)).from_pretrained(source, config=config, **options)


def empty_model(config: Any, **options: Any) -> "PreTrainedModel":
    """The model of a configuration on the meta device: its modules and no weights."""
    import torch
    import transformers

    with torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, _named(config)).from_config(
            config, **options
        )
    return model


def expert_counts(text: Mapping[str, Any]) -> set[int]:
    """The numbers of experts that the configuration of a language model speaks of.

    It is a hint: models whose layers are all dense may have one too, as a default of their class.
    """
    return {
        text[key]
        for key in EXPERT_KEYS
        if isinstance(text.get(key), int) and not isinstance(text[key], bool) and text[key] > 1
    }


def holds_experts(tensors: Iterable[tuple[str, tuple[int, ...]]], counts: set[int]) -> bool:
    """Whether tensors of a decoder, by name and shape, are experts'.

    They are in a module called so, or stacked in a tensor of three dimensions, as many as the
    configuration says (``counts``). A convolution's weight [channels, 1 or more, width] is neither.

    >>> holds_experts([("layers.0.conv.conv.weight", (64, 1, 3))], {64})
    False
    >>> holds_experts([("layers.0.moe.input_linear.weight", (8, 64, 32))], {8})
    True
    """
    return any(
        "experts" in name.split(".")
        or (len(shape) == 3 and shape[0] in counts and shape[1] > 1 and "conv" not in name)
        for name, shape in tensors
    )


def _named(config: Any) -> str:
    # A configuration object's class knows its type; what a file says beside, its attributes.
    found = auto_class(
        {
            "model_type": config.model_type,
            "auto_map": getattr(config, "auto_map", None),
            "architectures": getattr(config, "architectures", None),
        }
    )
    return found or CAUSAL


@cache
def _tables() -> dict[str, dict[str, str]]:
    """transformers' tables of model types and class names, by the tables' names."""
    spec = importlib.util.find_spec("transformers")
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    if folder is None:
        return {}
    try:
        trees = [
            ast.parse(Path(folder, "models", "auto", name).read_text(encoding="utf-8"))
            for name in ("auto_mappings.py", "modeling_auto.py")
        ]
    except (OSError, SyntaxError):
        return {}
    tables: dict[str, dict[str, str]] = {}
    for node in itertools.chain(*(tree.body for tree in trees)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name.endswith("_MAPPING_NAMES"):
                tables[name] = dict(_pairs(node.value))
    return tables


def _pairs(node: ast.AST) -> Iterable[tuple[str, str]]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Tuple) and len(inner.elts) == 2:
            key, value = inner.elts
            if isinstance(value, ast.Tuple):
                value = value.elts[0]
            if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                yield str(key.value), str(value.value)
