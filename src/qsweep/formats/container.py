"""Containers: how the weights of an artifact lie in its files, and which module reads which.

Adding one is a file with a :class:`Container` named ``CONTAINER``, and a row in ``_MODULES``; one
from another package is an entry point of the group ``qsweep.containers`` that names such an object.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qsweep.base.errors import BackendUnavailable, ConfigError, QsweepError
from qsweep.base.schema import nearest
from qsweep.formats.active import chosen_share
from qsweep.formats.artifact import Artifact, Size
from qsweep.formats.belonging.check import checkpoint_belonging, checkpoint_differences
from qsweep.formats.belonging.difference import Difference
from qsweep.formats.stored import StoredTensor, size_of
from qsweep.models.config import read_config, text_config
from qsweep.models.files import saved_weight_files

if TYPE_CHECKING:
    from qsweep.formats.activations import LayerActivations

ENTRY_POINTS = "qsweep.containers"
# Where each container that comes with qsweep is described.
_MODULES = {
    "hf": "qsweep.formats.hf",
    "gptq": "qsweep.formats.gptq",
    "awq": "qsweep.formats.awq",
    "compressed-tensors": "qsweep.formats.compressed_tensors",
    "fp8": "qsweep.formats.fp8",
    "mxfp4": "qsweep.formats.mxfp4",
    "bitsandbytes": "qsweep.formats.bitsandbytes",
    "torchao": "qsweep.formats.torchao",
    "hqq": "qsweep.formats.hqq",
    "exl3": "qsweep.formats.exl3",
    "modelopt": "qsweep.formats.modelopt",
    "gguf": "qsweep.formats.gguf.dense",
}
# Runtimes that qsweep can run by itself to time an artifact.
TimedBy = Literal["transformers", "gptqmodel", "llama.cpp"]


class Container(ABC):
    """What qsweep has to know of a container; a subclass for each.

    Attributes:
        name: As in :attr:`Artifact.format`.
        quantized: Whether the weights are codes rather than numbers.
        quant_methods: The ``quant_method`` of checkpoints that it reads.
        timed_by: The runtime that can be timed from here, if there is one.
        library: What reads it, if that is an extra of qsweep's, by the name of both.
        counts_files: Whether :meth:`size` can tell from files alone which layers are quantized.
    """

    name: str
    quantized: bool = True
    quant_methods: tuple[str, ...] = ()
    timed_by: TimedBy | None = None
    library: str | None = None
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

    def claims(self, settings: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this ``quantization_config`` is one of this container's."""
        return settings.get("quant_method") in self.quant_methods

    def refusal(self, path: Path, settings: Mapping[str, Any]) -> str | None:
        """Why a checkpoint that it claims cannot be read after all, in a few words; None if it can."""
        return None

    def details(self, path: Path) -> dict[str, Any]:
        """What an artifact says beside its weights: what activations and the KV cache are served as."""
        return {}

    def quantizes_activations(self, path: Path) -> bool:
        """Whether an artifact at ``path`` is served with quantized activations, by its settings.

        Raises:
            ArtifactCorrupt: They make no sense.
        """
        return False

    def layer_activations(self, path: Path) -> "Mapping[str, LayerActivations]":
        """What is done to activations where an artifact at ``path`` is served.

        Returns:
            By the name of each layer whose inputs or outputs are quantized, as the checkpoint calls
            it; nothing where none are.

        Raises:
            ArtifactCorrupt: A scale that is due is missing or is none.
        """
        return {}

    def require_library(self) -> None:
        """Raises BackendUnavailable where the library that reads the format is not installed."""
        if self.library is not None and importlib.util.find_spec(self.library) is None:
            raise BackendUnavailable(
                f"{self.library}, which reads {self.name} checkpoints, is not installed: "
                f'pip install "qsweep[{self.library}]"'
            )

    def stored(self, path: Path) -> list[StoredTensor]:
        """How each tensor is stored in an artifact at ``path``, from its files alone.

        Raises:
            QsweepError: They cannot tell; ``counts_files`` says so.
        """
        raise QsweepError(
            f"{path}: which layers are quantized is not told by {self.name} files alone"
        )

    def differences(self, path: Path, base: Path) -> list[Difference]:
        """In what an artifact of another maker is not one of a model; see ``formats.belonging``.

        Args:
            path: The artifact, a checkpoint's directory unless a subclass says otherwise.
            base: The directory of the unquantized model.

        Raises:
            QsweepError: Its files cannot be read.
        """
        return checkpoint_differences(path, base, self.stored(path), quantized=self.quantized)

    def adopt(self, path: Path, base: Path, out: Path) -> Artifact:
        """An artifact of another maker, which stays where it is.

        Args:
            path: Where it lies.
            base: The directory of the unquantized model.
            out: An empty directory, for what reading it takes beside.

        Returns:
            It, with its size counted and ``path`` as its origin; in ``details["belonging"]`` which
            tensors are the model's own, and notes on it.

        Raises:
            QsweepError: Its files cannot be read.
        """
        found = checkpoint_belonging(path, base, self.stored(path), self.name)
        details = {**self.details(path), "belonging": found}
        return Artifact(out, self.name, self.size(path), (), details, origin=path)

    def served_by(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """What can serve an artifact that states these options; nothing where nobody can tell."""
        return ()

    def stored_as(
        self, artifact: Artifact, source: Path, stored: Collection[str]
    ) -> Mapping[str, tuple[str, ...]]:
        """By the names of :meth:`dense_weights`, which tensors of :meth:`stored` each is made from.

        Only those that are not called alike.

        Args:
            artifact: Whose.
            source: The directory of the unquantized model.
            stored: The names of :meth:`stored`.
        """
        return {}

    def size(self, path: Path) -> Size:
        """Count what an artifact at ``path`` stores, from its files alone. Raises QsweepError."""
        files = [path] if path.is_file() else saved_weight_files(path)
        told: dict[str, Any] = {}
        # Another package's container may have none, or one of its own.
        with contextlib.suppress(ConfigError):
            told = text_config(read_config(path))
        weight_bytes = sum(file.stat().st_size for file in files)
        return size_of(self.stored(path), weight_bytes, chosen_share(told))


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


def containers() -> list[Container]:
    """All that there are; those of other packages last, without one that cannot be loaded."""
    found = [container(name) for name in _MODULES]
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        with contextlib.suppress(QsweepError, ImportError, AttributeError):
            found.append(container(point.name))
    return found
