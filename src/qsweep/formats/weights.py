"""Weights of a checkpoint on disk, each read when it is needed."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, ConfigError
from qsweep.formats.auto_round import translated
from qsweep.models.config import read_json
from qsweep.models.facts import TensorHeader, read_config, read_tensors, text_config
from qsweep.models.files import saved_weight_files

if TYPE_CHECKING:
    import torch

# Where settings lie that are not in config.json, and of which method they are.
_SETTINGS_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}


class LazyWeight:
    """A weight that is made when it is indexed, as transformers does with safetensors' slices."""

    def __init__(self, make: Callable[[], "torch.Tensor"]):
        self._make = make

    def __getitem__(self, index: Any) -> "torch.Tensor":
        return self._make()[index]


def transposed(weight: Any) -> "torch.Tensor":
    """A lazy matrix turned over, for models that store their layers' weights as [in, out]."""
    found: torch.Tensor = weight[...]
    return found.T


def quantization_settings(path: Path) -> dict[str, Any]:
    """The ``quantization_config`` of an artifact.

    It stands in ``config.json``, at its top or in the part of the text. Earlier writers left it in a
    file of its own: ``quantize_config.json`` (AutoGPTQ), ``quant_config.json`` (AutoAWQ),
    ``hf_quant_config.json`` (ModelOpt). That of AutoRound is given in the words of the container
    whose layout it has.

    Raises:
        ArtifactCorrupt: There is none, or it is no JSON object with a ``quant_method``.
    """
    found = find_settings(path)
    if found is None:
        raise ArtifactCorrupt(f"{path}: config.json without quantization_config")
    return found


def find_settings(path: Path) -> dict[str, Any] | None:
    """The same; None where an artifact has none, and so is not quantized. Raises ArtifactCorrupt."""
    try:
        settings = _settings(path)
    except (ConfigError, ValueError, TypeError) as error:
        raise ArtifactCorrupt(
            f"{path}: its quantization_config cannot be read ({error})"
        ) from error
    if settings is not None and not isinstance(settings.get("quant_method"), str):
        raise ArtifactCorrupt(
            f"{path}: its quantization_config has no quant_method, which says what its weights are"
        )
    return None if settings is None else translated(settings)


def _settings(path: Path) -> dict[str, Any] | None:
    config = read_config(path)
    stated = _stated(config)
    if stated is not None:
        return dict(stated)
    if (file := _settings_beside(path)) is None:
        return None
    found, method = dict(read_json(file)), _SETTINGS_FILES[file.name]
    if method == "modelopt":
        found = dict(found.get("quantization") or {})
    return {"quant_method": method, **found}


def _settings_beside(path: Path) -> Path | None:
    files = (path / name for name in _SETTINGS_FILES)
    return next((file for file in files if file.is_file()), None)


def settings_files(path: Path) -> list[Path]:
    """The files that say how a checkpoint is quantized: config.json, and another if only that does.

    Raises:
        ConfigError: config.json cannot be read.
    """
    config = read_config(path)
    beside = _settings_beside(path) if _stated(config) is None else None
    return [path / "config.json", *([beside] if beside is not None else [])]


def _stated(config: dict[str, Any]) -> Any:
    return config.get("quantization_config") or text_config(config).get("quantization_config")


def stored_headers(path: Path) -> dict[str, TensorHeader]:
    """All tensors of an artifact's files by name, also where a library names files its own way.

    Raises:
        ArtifactCorrupt: A file is missing, cut short or damaged.
    """
    try:
        return read_tensors(path, saved_weight_files(path))
    except ConfigError as error:
        raise ArtifactCorrupt(str(error)) from error


def open_weights(path: Path) -> dict[str, Any]:
    """The safetensors file that holds each tensor of a checkpoint, open. Raises ArtifactCorrupt.

    Tensors are read from it, not mapped: what is read and let go of takes no memory.
    """
    from safetensors import SafetensorError, safe_open

    handles: dict[str, Any] = {}
    try:
        for file in saved_weight_files(path):
            handle = safe_open(file, framework="pt", device="cpu", backend="pread")
            handles.update(dict.fromkeys(handle.keys(), handle))
    except (OSError, SafetensorError, ConfigError) as error:
        raise ArtifactCorrupt(f"{path}: its weights cannot be read ({error})") from error
    return handles


def slices_of(path: Path) -> dict[str, Any]:
    """Each tensor of a checkpoint by name, read when it is indexed. Raises ArtifactCorrupt."""
    return {name: handle.get_slice(name) for name, handle in open_weights(path).items()}


def header_metadata(path: Path) -> dict[str, str]:
    """What writers have put into the headers of a checkpoint's files, by name. Raises ArtifactCorrupt."""
    found: dict[str, str] = {}
    for file in {id(file): file for file in open_weights(path).values()}.values():
        found |= file.metadata() or {}
    return found
