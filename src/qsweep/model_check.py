"""Whether a model's configuration, weights and tokenizer belong together, before any trial runs."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.errors import ConfigError, in_one_line
from qsweep.model_config import read_config, read_json, text_config
from qsweep.model_facts import read_tensors
from qsweep.quantizers import ModelFacts, Progress

if TYPE_CHECKING:
    import torch

# Raised when the check finds more than before.
VERSION = 1
_TOKENIZER_JSON = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    "generation_config.json",
)


def check_tokenizer(facts: ModelFacts) -> None:
    """Refuse a tokenizer that is damaged; its vocabulary is for :mod:`qsweep.vocabulary`.

    Raises:
        ConfigError: names the file.
    """
    for name in _TOKENIZER_JSON:
        if (facts.path / name).exists() and not isinstance(read_json(facts.path / name), dict):
            raise ConfigError(f"{facts.path / name}: holds no JSON object")
    file = facts.path / "tokenizer.json"
    if not file.exists():
        return
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ConfigError(f"{file}: no tokenizer (it has no model); copy it again from its source")


def check_model(payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """A job's target: build ``payload["model"]`` without memory, and lay its weights' names over it.

    Returns ``problem``: one line, or None. Where nothing can be told, nothing is said.
    """
    progress("check the model", None)
    path = Path(payload["model"])
    try:
        return {"problem": fit_problem(path, trust_remote_code=payload["trust_remote_code"])}
    except ConfigError as error:
        return {"problem": str(error)}


def fit_problem(path: Path, *, trust_remote_code: bool = False) -> str | None:
    """What is wrong between ``config.json`` and the weights, found without reading a weight.

    transformers loads tensors that have a shape and no content, so that its renaming and merging
    of weights is what it will be.
    """
    import torch
    from transformers import AutoConfig

    from qsweep.architecture import empty_model
    from qsweep.load_report import report

    written = read_config(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        shell = empty_model(config, trust_remote_code=trust_remote_code)
    except ImportError:  # of what the checkpoint's own code needs, which the trial will say
        return None
    except Exception as error:
        if str(error).startswith("Unrecognized configuration class"):
            return None  # built otherwise, or not at all: for the trial to say
        return f"{path / 'config.json'}: {_why_not_built(error, written)}"
    tensors = read_tensors(path)
    state = {
        name: torch.empty(info.shape, dtype=_dtype(info.dtype), device="meta")
        for name, info in tensors.items()
    }
    try:
        loaded: Any = type(shell).from_pretrained(
            None,
            config=config,
            state_dict=state,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception:  # of what takes content; the loading itself will tell
        return None
    layers = text_config(written).get("num_hidden_layers")
    model, info = loaded
    problem = report(model, info, tensors, layers).problem
    return None if problem is None else f"{path}: weights do not fit the model ({problem})"


def _why_not_built(error: Exception, config: Mapping[str, Any]) -> str:
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
        fields = [name for name, value in _fields(config) if value == error.args[0]]
        where = fields[0] if fields else "it"
        return f"{where} says {error.args[0]!r}, which transformers {__version__} does not know"
    return f"transformers cannot build this model ({in_one_line(error)})"


def _parts_it_has_not(config: Mapping[str, Any]) -> list[str]:
    # transformers keeps what it does not know as it is, and fails where a part should be one.
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return []
    known = getattr(CONFIG_MAPPING[model_type], "sub_configs", {})
    parts = [n for n, v in config.items() if n.endswith("_config") and isinstance(v, dict)]
    return [name for name in parts if name not in known and name != "quantization_config"]


def _fields(config: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def _dtype(name: str) -> "torch.dtype":
    import torch

    return torch.bfloat16 if name.startswith(("F", "BF")) else torch.int32
