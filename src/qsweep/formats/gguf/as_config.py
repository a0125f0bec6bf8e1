"""What transformers' reading of a GGUF file's metadata leaves to the defaults of a class.

Its tables name some fields for each architecture. What else the file states (the size of a head, the
base and scaling of the rotary embedding, caps of logits) is set here, so that the configuration is the
file's; what no configuration can say is refused.
"""

import math
from typing import Any

from qsweep.base.errors import IncompatibleTrial
from qsweep.formats.gguf.ggml import dequantize
from qsweep.formats.gguf.hyperparameters import SAME, agree
from qsweep.formats.gguf.reader import GGUFFile
from qsweep.formats.gguf.variants import EMBEDDING

_FACTORS = "rope_freqs.weight"
# Llama 3's scaling of the rotary embedding is not in the file, only the factors that it comes to. All
# models that have it share these (config.json of Llama 3.1, 3.2 and 3.3).
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def complete(config: Any, file: GGUFFile) -> None:
    """Set all that a file states in the configuration that transformers made of it.

    Raises:
        IncompatibleTrial: the file says something of the rotary embedding that has no name.
    """
    if EMBEDDING in file.tensors:
        config.vocab_size = file.tensors[EMBEDDING].shape[0]
    for key, names in SAME.items():
        found = file.setting(key)
        if not found or key.startswith("rope."):
            continue
        own = next((name for name in names if hasattr(config, name)), None)
        if own is None or isinstance(found, list):
            continue
        if isinstance(found, float) or not agree(found, getattr(config, own)):
            setattr(config, own, _plain(found))
    if hasattr(config, "query_pre_attn_scalar"):
        config.query_pre_attn_scalar = _attention_scalar(config)
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict):
        _set_rope(config, rope, file)


def _set_rope(config: Any, rope: dict[str, Any], file: GGUFFile) -> None:
    full: dict[str, Any] = rope.get("full_attention", rope)
    sliding: dict[str, Any] | None = rope.get("sliding_attention")
    if base := file.setting("rope.freq_base"):
        full["rope_theta"] = _plain(base)
    if sliding is not None and (base := file.setting("rope.freq_base_swa")):
        sliding["rope_theta"] = _plain(base)
    width, head = file.setting("rope.dimension_count"), _head(config)
    if isinstance(width, int) and head and width < head:
        full["partial_rotary_factor"] = width / head
    kind, factor = file.setting("rope.scaling.type"), file.setting("rope.scaling.factor")
    original = file.setting("rope.scaling.original_context_length")
    if _FACTORS in file.tensors:
        _set_factors(full, file, width or head)
    elif "rope_factors_long.weight" in file.tensors:
        _set_long_factors(config, full, file, original)
    elif kind in ("linear", "yarn") and factor:
        full |= {"rope_type": kind, "factor": _plain(factor)}
        if kind == "yarn" and original:
            full["original_max_position_embeddings"] = original
    elif kind not in (None, "none"):
        raise IncompatibleTrial(
            f"{file.path}: scales its rotary embedding by {kind!r}, which cannot be told in a "
            "configuration; give the checkpoint that it was made from"
        )


def _attention_scalar(config: Any) -> int:
    """What Gemma's queries are divided by the root of; no file says it, and llama.cpp knows it by size.

    Of 27B it is the width of a head if heads made up the whole width (``gemma2.cpp``, ``gemma3.cpp``).
    """
    if config.num_hidden_layers in (46, 62):
        return int(config.hidden_size // config.num_attention_heads)
    return int(config.head_dim)


def _head(config: Any) -> int:
    found = getattr(config, "head_dim", None)
    heads = getattr(config, "num_attention_heads", None)
    return found or (config.hidden_size // heads if heads else 0)


def _set_factors(rope: dict[str, Any], file: GGUFFile, width: int) -> None:
    """Find the scaling that a file's factors of frequencies come from: Llama 3's, or none."""
    import torch

    factors = dequantize(file, _FACTORS, torch.float32).flatten().tolist()
    if all(factor == 1 for factor in factors):
        return
    scaling = {"rope_type": "llama3", "factor": float(f"{max(factors):.6g}"), **_LLAMA3}
    frequencies = [rope["rope_theta"] ** (-2 * i / width) for i in range(len(factors))]
    expected = [_llama3_factor(frequency, scaling) for frequency in frequencies]
    if not all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(factors, expected, strict=True)):
        raise IncompatibleTrial(
            f"{file.path}: the factors in {_FACTORS} are not those of Llama 3, and no configuration "
            "names them; give the checkpoint that it was made from"
        )
    rope |= scaling


def _llama3_factor(frequency: float, scaling: dict[str, Any]) -> float:
    """What a frequency is divided by (``_compute_llama3_parameters`` in transformers)."""
    length, low = scaling["original_max_position_embeddings"], scaling["low_freq_factor"]
    high, factor = scaling["high_freq_factor"], scaling["factor"]
    wave = 2 * math.pi / frequency
    if wave < length / high:
        return 1.0
    if wave > length / low:
        return float(factor)
    smooth = (length / wave - low) / (high - low)
    return float(1 / ((1 - smooth) / factor + smooth))


def _set_long_factors(
    config: Any, rope: dict[str, Any], file: GGUFFile, original: int | None
) -> None:
    import torch

    for kind in ("long", "short"):
        found = dequantize(file, f"rope_factors_{kind}.weight", torch.float32).flatten().tolist()
        rope[f"{kind}_factor"] = [_plain(number) for number in found]
    rope["rope_type"] = "longrope"
    if original:
        rope["original_max_position_embeddings"] = original
        config.original_max_position_embeddings = original


def _plain(number: Any) -> Any:
    """A number that was rounded to float32, as somebody wrote it: 1e-05 reads 9.99999974e-06."""
    return float(f"{number:.6g}") if isinstance(number, float) else number
