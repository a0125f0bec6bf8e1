"""Scales of an FP8 cache that a checkpoint was calibrated with.

One number for a layer's keys and one for its values, by which they are divided before they are
stored, under the names that vLLM takes (``maybe_remap_kv_scale_name`` in its
``model_loader/weight_utils.py``): ``self_attn.k_scale`` (compressed-tensors, ``self_attn.attn.k_scale``
in older ones), ``self_attn.k_proj.k_scale`` (ModelOpt), ``self_attn.k_proj.output_scale`` (fbgemm,
older compressed-tensors), and ``self_attn.kv_scale`` for both.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.artifact import Artifact
from qsweep.formats.kv_cache.rounding import Part
from qsweep.models.facts import read_tensors

Scales = Mapping[tuple[int, Part], float]
"""By layer and part."""

_STATED = "fp8 per tensor, static"
_SCALE = re.compile(
    r"\.(\d+)\.(?:self_attn|attention|attn)\."
    r"(?:attn\.)?(?:(?:k_proj|v_proj)\.)?(?:(k|v|kv)_scale|(?<=[kv]_proj\.)output_scale)$"
)


def stored_scales(artifact: Artifact) -> Scales:
    """An artifact's scales of an FP8 cache; empty where it says that there is none.

    Raises:
        ArtifactCorrupt: One is no positive number.
    """
    if artifact.details.get("kv_cache") != _STATED and artifact.format != "fp8":
        return {}
    found: dict[tuple[int, Part], float] = {}
    for name, header in read_tensors(artifact.files).items():
        if (match := _SCALE.search(name)) is None:
            continue
        which = match[2] or name.rpartition("_proj.")[0][-1]
        value = _read(header.file, name)
        if not (math.isfinite(value) and value > 0):
            raise ArtifactCorrupt(
                f"{artifact.files}: {name} is {value}, which nothing is divided by"
            )
        parts: tuple[Part, ...] = ("keys", "values")
        for part, letter in zip(parts, "kv", strict=True):
            if letter in which:
                found[int(match[1]), part] = value
    return found


def _read(file: Path, name: str) -> float:
    from safetensors import safe_open

    with safe_open(file, framework="pt", device="cpu") as opened:
        tensor = opened.get_tensor(name)
    if tensor.numel() != 1:
        raise ArtifactCorrupt(f"{file}: {name} has {tensor.numel()} numbers, a cache has one scale")
    return float(tensor)
