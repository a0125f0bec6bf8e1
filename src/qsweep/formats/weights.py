"""Weights of a checkpoint on disk, each read when it is needed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import (
    ArtifactCorrupt,
    ConfigError,
)
from qsweep.models.facts import weight_files

if TYPE_CHECKING:
    import torch


class LazyWeight:
    """A weight that is made when it is indexed, as transformers does with safetensors' slices."""

    def __init__(self, make: Callable[[], "torch.Tensor"]):
        self._make = make

    def __getitem__(self, index: Any) -> "torch.Tensor":
        return self._make()[index]


def quantization_settings(path: Path) -> dict[str, Any]:
    """The ``quantization_config`` of an artifact. Raises ArtifactCorrupt."""
    try:
        return dict(json.loads((path / "config.json").read_text("utf-8"))["quantization_config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactCorrupt(f"{path}: config.json without quantization_config") from error


def open_weights(path: Path) -> dict[str, Any]:
    """The safetensors file that holds each tensor of a checkpoint, open. Raises ArtifactCorrupt."""
    from safetensors import SafetensorError, safe_open

    handles: dict[str, Any] = {}
    try:
        for file in weight_files(path):
            handle = safe_open(file, framework="pt", device="cpu")
            handles.update(dict.fromkeys(handle.keys(), handle))
    except (OSError, SafetensorError, ConfigError) as error:
        raise ArtifactCorrupt(f"{path}: its weights cannot be read ({error})") from error
    return handles
