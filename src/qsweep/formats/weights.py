"""Weights of a checkpoint on disk, each read when it is needed."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, ConfigError
from qsweep.models.facts import weight_files

if TYPE_CHECKING:
    import torch

    from qsweep.formats.packing import Grid


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


def unpacked_weights(
    path: Path,
    parts: Sequence[str],
    unpack: "Callable[..., Grid]",
    device: str,
    *,
    optional: Sequence[str] = (),
    transposed: bool = False,
) -> dict[str, Any]:
    """The weights of a checkpoint with packed layers by name, dense, each made on demand.

    Args:
        path: The checkpoint's directory.
        parts: What a packed layer's tensors are called; the one that holds the codes comes first.
        unpack: Makes a layer's grid of its tensors, by the names of their parts.
        device: Where that is done.
        optional: Parts that a layer may lack.
        transposed: Whether the model wants its weights as [in, out].

    Raises:
        ArtifactCorrupt: A file is unreadable, or a layer lacks one of its tensors.
    """
    handles = open_weights(path)
    state: dict[str, Any] = {}
    for name, handle in handles.items():
        layer, _, part = name.rpartition(".")
        if part == parts[0]:
            names = {p: f"{layer}.{p}" for p in (*parts, *optional)}
            for needed in parts:
                if names[needed] not in handles:
                    raise ArtifactCorrupt(f"{path}: {layer} has no {needed}")
            found = {p: (handles[full], full) for p, full in names.items() if full in handles}
            state[f"{layer}.weight"] = LazyWeight(
                partial(_unpack, found, unpack, device, transposed)
            )
        elif f"{layer}.{parts[0]}" not in handles or part not in (*parts, *optional):
            state[name] = handle.get_slice(name)
    if not any(name.endswith(f".{parts[0]}") for name in handles):
        raise ArtifactCorrupt(f"{path}: no quantized layer in its weight files")
    return state


def _unpack(
    tensors: "Mapping[str, tuple[Any, str]]",
    unpack: "Callable[..., Grid]",
    device: str,
    transposed: bool,
) -> "torch.Tensor":
    import torch

    read = {part: file.get_tensor(name).to(device) for part, (file, name) in tensors.items()}
    # float32: the cast to the model's dtype is transformers', with all other weights.
    weight = unpack(**read).dense(torch.float32)
    return weight.T if transposed else weight
