"""Which device and which dtype a trial computes in. Answers without importing torch."""

import importlib.util
import re
from functools import lru_cache
from pathlib import Path

from qsweep.base.errors import ConfigError
from qsweep.launch.gpus import visible_gpus
from qsweep.models.config import read_config

_FLOATS = ("float32", "bfloat16", "float16")


def resolve_device(device: str) -> str:
    """``auto`` and ``cuda`` become ``cuda:0`` where torch can use one, ``auto`` else ``cpu``.

    Raises:
        ConfigError: a GPU is asked for that is not there.
    """
    count = len(visible_gpus()) if device != "cpu" and torch_has_cuda() else 0
    if device == "cpu" or (device == "auto" and not count):
        return "cpu"
    if not count:
        why = "" if torch_has_cuda() else "; the installed torch is built without CUDA"
        raise ConfigError(f"device={device}: no CUDA device here{why}; use device=cpu")
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise ConfigError(f"device={device}: only {count} CUDA device(s) visible, from cuda:0")
    return f"cuda:{index}"


def resolve_dtype(dtype: str, device: str, model: Path) -> str:
    """``auto``: float32 on a CPU, the checkpoint's own on CUDA (bfloat16 where it names none)."""
    if dtype != "auto":
        return dtype
    return "float32" if device == "cpu" else own_dtype(model)


def own_dtype(model: Path) -> str:
    """What a checkpoint's configuration says that it is computed in; bfloat16 where it names none."""
    config = read_config(model)
    config = (config.get("text_config") or {}) | config
    own = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return own if own in _FLOATS else "bfloat16"


@lru_cache(maxsize=1)
def torch_has_cuda() -> bool:
    """Whether the installed torch is built with CUDA, read from its version file."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda[^=]*=\s*(.+)$", text, re.MULTILINE)
    return found is not None and found.group(1).strip() != "None"
