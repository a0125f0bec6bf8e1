"""How a model's makers have it generate: ``generation_config.json``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.files import read_json
from qsweep.models.config import read_config, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "generation_config.json"
# What transformers' loop would do to logits, or search by, because the file says so; and what does nothing.
_ALTERING: dict[str, float | None] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "num_beams"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), 0),
    **dict.fromkeys(("min_new_tokens", "bad_words_ids", "suppress_tokens", "sequence_bias")),
    **dict.fromkeys(("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id")),
    **dict.fromkeys(("exponential_decay_length_penalty", "guidance_scale")),
}


def generation_settings(model: Path) -> dict[str, Any]:
    """What the file beside a model says; nothing where there is none that can be read."""
    try:
        found = read_json(model / FILE)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def generate_as_stated(model: "PreTrainedModel", directory: Path) -> None:
    """Let a model's texts end where its makers say, whatever its weights came from.

    transformers takes that from the directory it loads weights of, and for tensors of an artifact from
    the configuration alone: reference and artifact would end their answers at different tokens. What
    else it takes from there (penalties for repetition, beams) is no part of the protocol.

    Args:
        model: As it was loaded.
        directory: The reference's.
    """
    from transformers import GenerationConfig

    own = GenerationConfig.from_model_config(model.config)
    stated = _tokens(generation_settings(directory).get("eos_token_id"))
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=stated or own.eos_token_id
    )


def beyond_configuration(model: Path) -> dict[str, Any]:
    """What the file says of generating that the configuration does not, for keys.

    Which tokens end a text, where these are others, and what the loop would have been altered by.
    """
    stated = generation_settings(model)
    if not stated:
        return {}
    config = read_config(model)
    own = config.get("eos_token_id", text_config(config).get("eos_token_id"))
    ends = _tokens(stated.get("eos_token_id"))
    found: dict[str, Any] = {"ends": ends} if ends != _tokens(own) else {}
    altered = [n for n, nothing in _ALTERING.items() if stated.get(n) not in (None, nothing)]
    if altered:
        found["without"] = sorted(altered)
    return found


def _tokens(stated: Any) -> list[int]:
    tokens = stated if isinstance(stated, list) else [stated]
    return sorted({t for t in tokens if isinstance(t, int) and not isinstance(t, bool)})
