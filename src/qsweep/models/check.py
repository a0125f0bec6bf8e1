"""Whether a model's configuration, weights and tokenizer belong together, before any trial runs."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ConfigError
from qsweep.base.files import state_of
from qsweep.base.progress import Progress
from qsweep.models.config import read_config, read_json, text_config
from qsweep.models.facts import read_tensors
from qsweep.models.source import ModelFacts

if TYPE_CHECKING:
    import torch

# Raised when the check finds more than before.
VERSION = 2
_TOKENIZER_JSON = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    "generation_config.json",
)


def check_tokenizer(facts: ModelFacts) -> None:
    """Refuse a tokenizer that is damaged; its vocabulary is for :mod:`qsweep.text.vocabulary`.

    Raises:
        ConfigError: names the file.
    """
    _check_tokenizer(facts.path, state_of(facts.path, (*_TOKENIZER_JSON, "tokenizer.json")))


@lru_cache(maxsize=16)
def _check_tokenizer(path: Path, _state: Any) -> None:
    for name in _TOKENIZER_JSON:
        if (path / name).exists() and not isinstance(read_json(path / name), dict):
            raise ConfigError(f"{path / name}: holds no JSON object")
    file = path / "tokenizer.json"
    if not file.exists():
        return
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ConfigError(f"{file}: no tokenizer (it has no model); copy it again from its source")


def check_model(payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """A job's target: build ``payload["model"]`` without memory, and lay its weights' names over it.

    Returns ``problem``: one line, or None; nothing where the model is not.
    """
    progress("check the model", None)
    path = Path(payload["model"])
    if not path.exists():
        return {}  # on a machine that has its own copy elsewhere, which is not the one in question
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

    from qsweep.models.architecture import empty_model
    from qsweep.models.build_failure import why_not_built
    from qsweep.models.load_report import report, unmerged

    written = read_config(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        shell = empty_model(config, trust_remote_code=trust_remote_code)
    except ImportError:  # of what the checkpoint's own code needs, which the trial will say
        return None
    except Exception as error:
        if str(error).startswith("Unrecognized configuration class"):
            return None  # built otherwise, or not at all: for the trial to say
        return f"{path / 'config.json'}: {why_not_built(error, written)}"
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
    except Exception as error:
        shapes = {name: info.shape for name, info in tensors.items()}
        if problem := unmerged(error, shapes):
            return _unfit(path, problem)
        return None  # of what takes content; the loading itself will tell
    layers = text_config(written).get("num_hidden_layers")
    model, info = loaded
    problem = report(model, info, tensors, layers).problem
    return None if problem is None else _unfit(path, problem)


def _unfit(path: Path, problem: str) -> str:
    return f"{path}: weights do not fit the model ({problem})"


def _dtype(name: str) -> "torch.dtype":
    import torch

    return torch.bfloat16 if name.startswith(("F", "BF")) else torch.int32
