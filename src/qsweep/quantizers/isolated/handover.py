"""A model as libraries of another generation can read it.

transformers 5 writes ``rope_parameters`` and ``dtype`` where 4 reads ``rope_theta``,
``rope_scaling`` and ``torch_dtype``, and what it does not know it ignores without a word. So a
worker gets a configuration in both spellings, beside links to the model's other files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsweep.base.files import write_json
from qsweep.models.facts import corrected_config
from qsweep.models.files import link_model

# Gemma 3's two kinds of layers, and what transformers 4 calls the base of the second.
_GLOBAL, _LOCAL, _LOCAL_BASE = "full_attention", "sliding_attention", "rope_local_base_freq"


def hand_over(source: Path, out: Path) -> None:
    """Lay out the checkpoint ``source`` in the new directory ``out`` for either generation."""
    link_model(source, out)
    (out / "config.json").unlink()
    write_json(out / "config.json", both_spellings(corrected_config(source)))


def both_spellings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with each setting under its name of transformers 4 and of 5.

    >>> both_spellings({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})["rope_theta"]
    500000.0
    """
    result = dict(config)
    if "dtype" in config:
        result.setdefault("torch_dtype", config["dtype"])
    result |= _rope(config.get("rope_parameters"), config)
    for part in ("text_config", "llm_config"):
        if isinstance(config.get(part), Mapping):
            result[part] = both_spellings(config[part])
    return result


def _rope(parameters: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(parameters, Mapping):
        return {}
    found: dict[str, Any] = {}
    if isinstance(parameters.get(_GLOBAL), Mapping):
        local = parameters.get(_LOCAL) or {}
        if "rope_theta" in local:
            found[_LOCAL_BASE] = local["rope_theta"]
        parameters = parameters[_GLOBAL]
    rest = dict(parameters)
    theta, share = rest.pop("rope_theta", None), rest.pop("partial_rotary_factor", None)
    if theta is not None:
        # GPT-NeoX has names of its own for both.
        found |= {"rope_theta": theta}
        if config.get("model_type") == "gpt_neox":
            found["rotary_emb_base"] = theta
    if share is not None:
        found["partial_rotary_factor"] = share
        if config.get("model_type") == "gpt_neox":
            found["rotary_pct"] = share
    kind = rest.get("rope_type", rest.get("type", "default"))
    # "type" is what transformers before 4.43 called it.
    found["rope_scaling"] = None if kind == "default" else {**rest, "type": kind}
    return found


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Settings of a configuration that a library read otherwise, as ``name: ours here, … there``."""
    found = []
    for name, value in sorted(ours.items()):
        if name in ("rope_parameters", "dtype", "torch_dtype", "transformers_version"):
            continue
        if isinstance(value, int | float | str | bool) and theirs.get(name, value) != value:
            found.append(f"{name}: {value} here, {theirs[name]} there")
    return found
