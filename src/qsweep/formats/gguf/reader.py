"""Reading a GGUF file: its metadata, and where each tensor lies.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A vocabulary of 128k tokens
and its merges are read in a fraction of a second, and tensor data only when it is asked for.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.gguf.types import TENSOR_TYPES, TensorType

if TYPE_CHECKING:
    import torch

# By the number of a metadata value's type: its struct code. 7 is a bool, 8 a string, 9 an array.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: ``shape`` in PyTorch's order (rows first), ``offset`` from the file's start."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def weights(self) -> int:
        """How many weights it has."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return self.type.bytes_of(self.weights)


@dataclass(frozen=True)
class GGUFFile:
    """The header of a file: metadata by key, tensors by name, in the file's order."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]

    def bytes_of(self, name: str) -> "torch.Tensor":
        """A tensor's bytes, uint8 [nbytes], mapped from the file rather than read."""
        import numpy
        import torch

        info = self.tensors[name]
        mapped = numpy.memmap(self.path, numpy.uint8, "c", info.offset, (info.nbytes,))
        return torch.from_numpy(mapped)


def read_gguf(path: Path) -> GGUFFile:
    """Read a file's header.

    Raises:
        ArtifactCorrupt: it is not a GGUF file, is truncated, or holds a tensor type unknown here.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _parse(path, data)
            end = max((t.offset + t.nbytes for t in found.tensors.values()), default=0)
            if end > len(data):
                raise ArtifactCorrupt(f"{path}: truncated, {len(data)} bytes instead of {end}")
            return found
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ArtifactCorrupt(f"{path}: not a readable GGUF file ({error})") from error


def _parse(path: Path, data: mmap.mmap) -> GGUFFile:
    cursor = _Cursor(data)
    magic, version, n_tensors, n_values = cursor.unpack("4sIQQ")
    if magic != b"GGUF" or version not in (2, 3):
        raise ArtifactCorrupt(f"{path}: not a GGUF file of version 2 or 3")
    metadata = {}
    for _ in range(n_values):
        key = cursor.string()
        metadata[key] = cursor.value(*cursor.unpack("I"))
    places = []
    for _ in range(n_tensors):
        name = cursor.string()
        sizes = cursor.unpack(f"{cursor.unpack('I')[0]}Q")
        number, offset = cursor.unpack("IQ")
        if number not in TENSOR_TYPES:
            raise ArtifactCorrupt(f"{path}: {name} has the unknown tensor type {number}")
        places.append((name, tuple(reversed(sizes)), TENSOR_TYPES[number], offset))
    alignment = metadata.get("general.alignment", 32)
    start = -(-cursor.at // alignment) * alignment
    infos = [GGUFTensor(name, shape, type_, start + at) for name, shape, type_, at in places]
    return GGUFFile(path, metadata, {info.name: info for info in infos})


class _Cursor:
    """A place in the header that moves on as things are read."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.at = 0

    def unpack(self, codes: str) -> tuple[Any, ...]:
        code = "<" + codes
        found = struct.unpack_from(code, self.data, self.at)
        self.at += struct.calcsize(code)
        return found

    def string(self) -> str:
        (size,) = self.unpack("Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.unpack(_SCALARS[kind])[0]
        kind, count = self.unpack("IQ")
        if kind in _SCALARS:
            return list(self.unpack(f"{count}{_SCALARS[kind]}"))
        return [self.value(kind) for _ in range(count)]
