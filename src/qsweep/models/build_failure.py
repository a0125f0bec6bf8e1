"""Why transformers builds no model of a configuration: in one line, with the field that is in the way."""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from qsweep.base.errors import in_one_line
from qsweep.base.schema import flat
from qsweep.models.config import json_excerpt

# More fields than these that all are in the way say nothing of each.
_MOST_FIELDS = 3


def why_not_built(error: Exception, config: Mapping[str, Any]) -> str:
    """What is wrong with a configuration.

    Args:
        error: What transformers raised over it.
        config: Its content, as it was written.
    """
    from transformers import CONFIG_MAPPING, __version__

    model_type = config.get("model_type")
    if "auto_map" in config and "trust_remote_code" in str(error):
        return (
            f"the architecture {model_type!r} is Python code that comes with the model; "
            "model.trust_remote_code=true runs it, if you trust its source"
        )
    if isinstance(model_type, str) and model_type not in CONFIG_MAPPING:
        near = get_close_matches(model_type, CONFIG_MAPPING.keys(), n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        return f"transformers {__version__} knows no model_type {model_type!r}{meant}"
    if "'dict' object" in str(error) and (parts := _parts_it_has_not(config)):
        return f"a model of the type {model_type!r} has no {' and no '.join(parts)}; take it out"
    if isinstance(error, KeyError) and error.args:
        # Looked up in one of transformers' tables: of activations, of rotary embeddings.
        key = error.args[0]
        fields = [n for n, value in flat(config) if type(value) is type(key) and value == key]
        if len(fields) == 1:
            value = repr(key) if isinstance(key, str) else json_excerpt(key)
            return f"{fields[0]} says {value}, which transformers {__version__} does not know"
    reason = f"transformers cannot build this model ({_in_words(error)})"
    named = {name.rpartition(".")[2] for name, _ in flat(config)}
    if any(re.search(rf"\b{re.escape(name)}\b", str(error)) for name in named):
        return reason
    guilty = [f"{name}, which is {json_excerpt(value)}" for name, value in _in_the_way(config)]
    return f"{reason}; look at {' or '.join(guilty)}" if 0 < len(guilty) <= _MOST_FIELDS else reason


def _parts_it_has_not(config: Mapping[str, Any]) -> list[str]:
    # transformers keeps what it does not know as it is, and fails where a part should be one.
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return []
    known = getattr(CONFIG_MAPPING[model_type], "sub_configs", {})
    parts = [n for n, v in config.items() if n.endswith("_config") and isinstance(v, dict)]
    return [name for name in parts if name not in known and name != "quantization_config"]


def _in_the_way(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields without which, at their defaults, there would be a model."""
    for name, value in config.items():
        if name == "model_type" or not _builds(_without(config, [name])):
            continue
        inner = flat(value, f"{name}.") if isinstance(value, Mapping) else ()
        parts = [(n, v) for n, v in inner if _builds(_without(config, n.split(".")))]
        yield from parts or [(name, value)]


def _builds(config: Mapping[str, Any]) -> bool:
    from transformers import CONFIG_MAPPING

    from qsweep.models.architecture import empty_model

    try:
        empty_model(CONFIG_MAPPING[config["model_type"]].from_dict(dict(config)))
    except Exception:
        return False
    return True


def _without(config: Mapping[str, Any], place: list[str]) -> dict[str, Any]:
    first, *rest = place
    if rest:
        return {**config, first: _without(config[first], rest)}
    return {name: value for name, value in config.items() if name != first}


def _in_words(error: Exception) -> str:
    # A key that is missing is no sentence.
    if isinstance(error, KeyError):
        return f"it looks for {in_one_line(error)}, which is not there"
    return in_one_line(error)
