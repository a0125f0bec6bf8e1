"""A Hugging Face checkpoint in which some tensors lie as codes, scales and the like.

What such containers have in common: a dense tensor of the model is stored in *parts*, tensors of
their own, each of which is read when the dense tensor is wanted. A container says which parts there
are, what they are in numbers, and what they say of size.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, QsweepError, in_one_line
from qsweep.formats.activations import LayerActivations
from qsweep.formats.artifact import Artifact
from qsweep.formats.container import Container
from qsweep.formats.stored import StoredTensor
from qsweep.formats.weights import (
    LazyWeight,
    open_weights,
    quantization_settings,
    stored_headers,
)
from qsweep.models.facts import TensorHeader, distinct_weights, read_config

if TYPE_CHECKING:
    import torch

Settings = Mapping[str, Any]
# What libraries come up with over tensors that do not belong together.
_OF_TENSORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(NotImplementedError, RuntimeError, TypeError, ValueError),
)


class QuantizedCheckpoint(Container):
    """What a container says of itself, if its files are a checkpoint's.

    Attributes:
        parts: What a quantized layer's tensors are called, all of which it needs; that of the codes
            comes first. It is "" where they have the dense tensor's own name.
        optional: Parts that a layer may lack.
        activations: Parts that scale a layer's inputs and outputs, or keys and values. They are no
            weights: not loaded, and no parameters.
    """

    parts: tuple[str, ...]
    optional: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()

    @abstractmethod
    def dense(
        self, name: str, tensors: "Mapping[str, torch.Tensor]", settings: Settings
    ) -> "torch.Tensor":
        """One dense tensor, in float32 and in the shape that the model has it in.

        An :class:`ArtifactCorrupt` raised here, or by :meth:`describe`, needs not name the artifact.

        Args:
            name: What it is called.
            tensors: Its parts.
            settings: What :meth:`settings` read.

        Raises:
            ValueError: The parts do not belong together, or another error of the library that reads
                them: who asks gets an ArtifactCorrupt that names the tensor.
        """

    @abstractmethod
    def describe(
        self, name: str, parts: Mapping[str, TensorHeader], settings: Settings
    ) -> tuple[str, int]:
        """What a quantized tensor is stored as (such as ``int4 g128``), and how many weights it has."""

    def part_of(self, tensor: str) -> tuple[str, str]:
        """The dense tensor that a stored one belongs to, and as which part; "" if it is whole."""
        layer, _, part = tensor.rpartition(".")
        if part in (*self.parts, *self.optional):
            return f"{layer}.weight", part
        return tensor, ""

    def is_quantized(self, parts: Mapping[str, TensorHeader]) -> bool:
        """Whether parts found together are a quantized tensor, or several that have their own names."""
        return self.parts[0] in parts

    def needed(self, parts: Mapping[str, TensorHeader], settings: Settings) -> tuple[str, ...]:
        """The parts without which a quantized tensor that has these cannot be read."""
        return self.parts

    def quantizes_weights(self, settings: Settings) -> bool:
        """Whether any weight should be quantized, and not activations or the KV cache alone."""
        return True

    def settings(self, path: Path) -> Settings:
        """What tensors are read by: the ``quantization_config``, and what else a container wants.

        Raises:
            ArtifactCorrupt: There is none, or it makes no sense.
        """
        return quantization_settings(path)

    def dense_weights(self, artifact: Artifact, source: Path, device: str) -> dict[str, Any]:
        """See :meth:`Container.dense_weights`."""
        self.require_library()
        path = artifact.files
        settings, handles = self.settings(path), open_weights(path)
        state: dict[str, Any] = {}
        quantized = False
        for name, parts in self._groups(stored_headers(path)).items():
            if not self._is_whole(path, name, parts, settings):
                weights = (full for full, _ in parts.values() if not self._scales_activations(full))
                state.update((full, handles[full].get_slice(full)) for full in weights)
                continue
            quantized = True
            self._described(path, name, parts, settings)
            files = {part: (handles[full], full) for part, (full, _) in parts.items()}
            state[name] = LazyWeight(partial(self._read, path, name, files, settings, device))
        if not quantized and self.quantizes_weights(settings):
            raise ArtifactCorrupt(f"{path}: no quantized layer in its weight files")
        return state

    def stored(self, path: Path) -> list[StoredTensor]:
        """See :meth:`Container.stored`; the quantized tensors are those that ``bpw`` counts."""
        settings = self.settings(path)
        found = []
        tensors = distinct_weights(stored_headers(path), read_config(path))
        for name, parts in self._groups(tensors).items():
            if self._is_whole(path, name, parts, settings):
                type_, weights = self._described(path, name, parts, settings)
                bits = sum(header.bits for _, header in parts.values())
                found.append(StoredTensor(name, type_, weights, bits, True, True))
                continue
            for full, header in parts.values():
                weights = 0 if self._scales_activations(full) else header.count
                found.append(StoredTensor(full, header.dtype, weights, header.bits, False, False))
        return found

    def activations_by_layer(
        self,
        path: Path,
        read: "Callable[[str, Mapping[str, torch.Tensor]], LayerActivations]",
        more: Collection[str] = (),
    ) -> dict[str, LayerActivations]:
        """What is done to the activations of each quantized layer, of those of which anything is.

        Args:
            path: The artifact.
            read: Called with a layer's name and what is stored beside its weight by the last part
                of its name, such as ``input_scale``; an ArtifactCorrupt raised by it needs not name
                the artifact.
            more: Parts that it is given beside those of activations.

        Raises:
            ArtifactCorrupt: A scale that is due is missing or is none.
        """
        settings, handles = self.settings(path), open_weights(path)
        beside: dict[str, dict[str, str]] = {}
        for full in handles:
            layer, _, part = full.rpartition(".")
            if part in (*self.activations, *more):
                beside.setdefault(layer, {})[part] = full
        found = {}
        for name, parts in self._groups(stored_headers(path)).items():
            if not self._is_whole(path, name, parts, settings):
                continue
            layer = name.removesuffix(".weight")
            with _one_line(path, layer):
                own = beside.get(layer, {}).items()
                one = read(layer, {part: handles[full].get_tensor(full) for part, full in own})
            if one.inputs is not None or one.outputs is not None:
                found[layer] = one
        return found

    def _scales_activations(self, tensor: str) -> bool:
        return tensor.rpartition(".")[2] in self.activations

    def _groups(
        self, tensors: Mapping[str, TensorHeader]
    ) -> dict[str, dict[str, tuple[str, TensorHeader]]]:
        # By dense tensor: its parts, each with its full name.
        groups: dict[str, dict[str, tuple[str, TensorHeader]]] = {}
        for full, header in tensors.items():
            name, part = self.part_of(full)
            groups.setdefault(name, {})[part] = (full, header)
        return groups

    def _is_whole(
        self,
        path: Path,
        name: str,
        parts: Mapping[str, tuple[str, TensorHeader]],
        settings: Settings,
    ) -> bool:
        headers = {part: header for part, (_, header) in parts.items()}
        if not self.is_quantized(headers):
            return False
        with _one_line(path, name):
            needed = self.needed(headers, settings)
        for part in needed:
            if part not in parts:
                raise ArtifactCorrupt(
                    f"{path}: {name.removesuffix('.weight')} has no {part or 'weight'}"
                )
        return True

    def _described(
        self,
        path: Path,
        name: str,
        parts: Mapping[str, tuple[str, TensorHeader]],
        settings: Settings,
    ) -> tuple[str, int]:
        # Parts that contradict each other are told before anything is measured.
        with _one_line(path, name):
            headers = {part: header for part, (_, header) in parts.items()}
            return self.describe(name, headers, settings)

    def _read(
        self,
        path: Path,
        name: str,
        files: Mapping[str, tuple[Any, str]],
        settings: Settings,
        device: str,
    ) -> "torch.Tensor":
        tensors = {part: file.get_tensor(full).to(device) for part, (file, full) in files.items()}
        # float32: the cast to the model's dtype is transformers', with all other weights.
        with _one_line(path, name):
            return self.dense(name, tensors, settings)


@contextmanager
def _one_line(path: Path, name: str) -> Iterator[None]:
    """Say in one line, with the artifact, why a tensor cannot be read. Raises ArtifactCorrupt."""
    try:
        yield
    except ArtifactCorrupt as error:
        raise ArtifactCorrupt(f"{path}: {error}") from error
    except (QsweepError, MemoryError):
        raise
    except _OF_TENSORS as error:
        # Out of memory says nothing of the file, though torch derives it from RuntimeError.
        if "out of memory" in str(error).lower() or "can't allocate" in str(error):
            raise
        raise ArtifactCorrupt(f"{path}: {name} cannot be read ({in_one_line(error)})") from error
