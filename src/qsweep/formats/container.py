"""Containers: how the weights of an artifact lie in its files, and which module reads which.

Adding one is a file with a :class:`Container` named ``CONTAINER``, and a row in ``_MODULES``; one
from another package is an entry point of the group ``qsweep.containers`` that names such an object.
"""

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from qsweep.base.errors import QsweepError
from qsweep.base.schema import nearest
from qsweep.formats.artifact import Artifact, Size
from qsweep.models.facts import (
    TensorHeader,
    distinct_weights,
    read_config,
    read_tensors,
    weight_files,
)

ENTRY_POINTS = "qsweep.containers"
# Where each container that comes with qsweep is described.
_MODULES = {
    "hf": "qsweep.formats.hf",
    "gptq": "qsweep.formats.gptq",
    "awq": "qsweep.formats.awq",
    "compressed-tensors": "qsweep.formats.compressed_tensors",
    "gguf": "qsweep.formats.gguf.dense",
}
# Runtimes that qsweep can run by itself to time an artifact.
TimedBy = Literal["transformers", "gptqmodel", "llama.cpp"]


class Container(ABC):
    """What qsweep has to know of a container; a subclass for each.

    Attributes:
        name: As in :attr:`Artifact.format`.
        quantized: Whether the weights are codes rather than numbers.
        timed_by: The runtime that can be timed from here, if there is one.
        counts_files: Whether :meth:`size` can tell from files alone which layers are quantized.
    """

    name: str
    quantized: bool = True
    timed_by: TimedBy | None = None
    counts_files: bool = True

    @abstractmethod
    def dense_weights(self, artifact: Artifact, source: Path, device: str) -> dict[str, Any] | None:
        """The dense weights by the names of the checkpoint ``source``, each made on demand.

        Args:
            artifact: Whose weights.
            source: The directory of the unquantized model.
            device: Where a weight is unpacked.

        Returns:
            Values of which ``value[...]`` is the tensor, float32 where it was quantized; None
            where transformers loads the artifact's directory as it is.

        Raises:
            ArtifactCorrupt: A file is unreadable, or a layer lacks one of its tensors.
        """

    def size(self, path: Path) -> Size:
        """Count what an artifact in the directory ``path`` stores, from its files alone.

        Raises:
            QsweepError: They cannot tell; ``counts_files`` says so.
        """
        raise QsweepError(
            f"{path}: which layers are quantized is not told by {self.name} files alone"
        )


@lru_cache(maxsize=64)
def container(name: str) -> Container:
    """The container of that name, qsweep's own or another package's.

    Raises:
        QsweepError: There is none; the nearest names are given.
    """
    if name in _MODULES:
        found: Container = importlib.import_module(_MODULES[name]).CONTAINER
        return found
    others = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if name not in others:
        raise QsweepError(f"no container {name!r}{nearest(name, [*_MODULES, *others])}")
    loaded = others[name].load()
    if not isinstance(loaded, Container):
        raise QsweepError(f"{others[name].value}: the entry point {name} is no Container")
    return loaded


def checkpoint_size(path: Path, weights_of: Callable[[str, TensorHeader], int | None]) -> Size:
    """Count what a checkpoint of safetensors files stores, from their headers.

    Args:
        path: Its directory.
        weights_of: How many weights a tensor stands for as part of a quantized layer; None where
            it is no part of one.
    """
    tensors = distinct_weights(read_tensors(path), read_config(path))
    linear_bits = linear_weights = other = 0
    for name, info in tensors.items():
        weights = weights_of(name, info)
        if weights is None:
            other += info.count
        else:
            linear_bits, linear_weights = linear_bits + info.bits, linear_weights + weights
    return Size(
        weight_bytes=sum(file.stat().st_size for file in weight_files(path)),
        linear_bits=linear_bits,
        linear_weights=linear_weights,
        total_bits=sum(info.bits for info in tensors.values()),
        parameters=other + linear_weights,
    )
