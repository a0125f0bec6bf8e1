"""A Hugging Face checkpoint in which some tensors lie as codes, scales and the like.

What such containers have in common: a dense tensor of the model is stored in *parts*, tensors of
their own, each of which is read when the dense tensor is wanted. A container says which parts there
are, what they are in numbers, and what they say of size.
"""

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt
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


class QuantizedCheckpoint(Container):
    """What a container says of itself, if its files are a checkpoint's.

    Attributes:
        parts: What a quantized layer's tensors are called, all of which it needs; that of the codes
            comes first.
        optional: Parts that a layer may lack.
    """

    parts: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @abstractmethod
    def dense(
        self, name: str, tensors: "Mapping[str, torch.Tensor]", settings: Settings
    ) -> "torch.Tensor":
        """One dense tensor, in float32 and in the shape that the model has it in.

        Args:
            name: What it is called.
            tensors: Its parts.
            settings: The ``quantization_config``.
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

    def dense_weights(self, artifact: Artifact, source: Path, device: str) -> dict[str, Any]:
        """See :meth:`Container.dense_weights`."""
        path = artifact.files
        settings, handles = quantization_settings(path), open_weights(path)
        state: dict[str, Any] = {}
        quantized = False
        for name, parts in self._groups(stored_headers(path)).items():
            if not self._is_whole(path, name, parts):
                state.update((full, handles[full].get_slice(full)) for full, _ in parts.values())
                continue
            quantized = True
            files = {part: (handles[full], full) for part, (full, _) in parts.items()}
            state[name] = LazyWeight(partial(self._read, name, files, settings, device))
        if not quantized:
            raise ArtifactCorrupt(f"{path}: no quantized layer in its weight files")
        return state

    def stored(self, path: Path) -> list[StoredTensor]:
        """See :meth:`Container.stored`; the quantized tensors are those that ``bpw`` counts."""
        settings = quantization_settings(path)
        found = []
        tensors = distinct_weights(stored_headers(path), read_config(path))
        for name, parts in self._groups(tensors).items():
            if self._is_whole(path, name, parts):
                headers = {part: header for part, (_, header) in parts.items()}
                type_, weights = self.describe(name, headers, settings)
                bits = sum(header.bits for header in headers.values())
                found.append(StoredTensor(name, type_, weights, bits, True, True))
            else:
                found += [
                    StoredTensor(full, header.dtype, header.count, header.bits, False, False)
                    for full, header in parts.values()
                ]
        return found

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
        self, path: Path, name: str, parts: Mapping[str, tuple[str, TensorHeader]]
    ) -> bool:
        headers = {part: header for part, (_, header) in parts.items()}
        if not self.is_quantized(headers):
            return False
        for needed in self.parts:
            if needed not in parts:
                raise ArtifactCorrupt(f"{path}: {name.removesuffix('.weight')} has no {needed}")
        return True

    def _read(
        self,
        name: str,
        files: Mapping[str, tuple[Any, str]],
        settings: Settings,
        device: str,
    ) -> "torch.Tensor":
        tensors = {part: file.get_tensor(full).to(device) for part, (file, full) in files.items()}
        # float32: the cast to the model's dtype is transformers', with all other weights.
        return self.dense(name, tensors, settings)
