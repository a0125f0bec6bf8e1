"""Parsing the header of one GGUF file, whoever wrote it: nothing in it is believed before it is checked.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the limits are those of
``ggml/src/gguf.cpp``, or wider. A length, a count or an offset is compared with the file's size before
room is made for what it promises, so that a damaged header costs no memory and no time.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.gguf.types import REMOVED_TYPES, TENSOR_TYPES, TensorType

# By the number of a metadata value's type: its struct code. 7 is a bool, 8 a string, 9 an array.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# The least that a metadata value and a tensor's entry take: names of no letters.
_LEAST_VALUE, _LEAST_TENSOR = 13, 32
_MOST_AXES = 4  # GGML_MAX_DIMS
_MOST_WEIGHTS = 1 << 62
# A vocabulary of a million pieces and its merges have two million entries of some bytes.
_MOST_ITEMS, _LONGEST_STRING = 1 << 24, 1 << 26
_LONGEST_NAME = 65535
_ALIGNMENT = 32


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: ``shape`` in PyTorch's order (rows first), ``offset`` from the start of ``path``."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    path: Path

    @property
    def weights(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return self.type.bytes_of(self.weights)


@dataclass(frozen=True)
class Header:
    """What one file says: metadata by key, and its tensors in the file's order."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]


def printable(text: str, longest: int = 200) -> str:
    r"""What a file says, as it may stand on a terminal and in a log: in one line, and not too long.

    >>> printable("Q4 by \x1b[31mnobody\n")
    'Q4 by \\x1b[31mnobody\\n'
    """
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def read_header(path: Path) -> Header:
    """Read one file's header.

    Raises:
        ArtifactCorrupt: it is not a GGUF file of version 2 or 3, is truncated, contradicts itself,
            or holds a tensor type unknown here; the line says what and where.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except (OSError, ValueError, struct.error) as error:
        raise ArtifactCorrupt(f"{path}: not a readable GGUF file ({error})") from error


def _parse(path: Path, data: mmap.mmap) -> Header:
    cursor = _Cursor(path, data)
    magic, version = cursor.unpack("4sI", "the header")
    _require_version(path, magic, version)
    n_tensors, n_values = cursor.unpack("QQ", "the header")
    cursor.require(n_values * _LEAST_VALUE, f"{n_values} metadata values")
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        key = cursor.string("a metadata key", _LONGEST_NAME)
        if key in metadata:
            raise cursor.damaged(f"the metadata key {key!r} occurs twice")
        metadata[key] = cursor.value(key)
    cursor.require(n_tensors * _LEAST_TENSOR, f"{n_tensors} tensors")
    entries: dict[str, tuple[tuple[int, ...], TensorType, int]] = {}
    for _ in range(n_tensors):
        name = cursor.string("a tensor's name", _LONGEST_NAME)
        if name in entries:
            raise cursor.damaged(f"the tensor {name!r} occurs twice")
        entries[name] = cursor.tensor(name)
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {alignment!r}, which must be a power of two")
    start = -(-cursor.at // alignment) * alignment
    tensors = {
        name: GGUFTensor(name, shape, type_, start + at, path)
        for name, (shape, type_, at) in entries.items()
    }
    _require_places(path, tensors, alignment, start, len(data))
    return Header(metadata, tensors)


def _require_version(path: Path, magic: bytes, version: int) -> None:
    if magic != b"GGUF":
        raise ArtifactCorrupt(f"{path}: not a GGUF file (it does not start with GGUF)")
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version > 0xFFFF and swapped in (1, 2, 3):
        raise ArtifactCorrupt(
            f"{path}: a big-endian GGUF file, which only machines of that order read; "
            "take the little-endian one, or convert the model again"
        )
    if version not in (2, 3):
        raise ArtifactCorrupt(
            f"{path}: a GGUF file of version {version}; those of version 2 and 3 can be read, "
            "and llama.cpp's converter writes 3"
        )


def _require_places(
    path: Path, tensors: Mapping[str, GGUFTensor], alignment: int, start: int, size: int
) -> None:
    """Refuse tensors that lie outside of the file, in one another, or askew."""
    last, end = "", start
    for tensor in sorted(tensors.values(), key=lambda t: t.offset):
        if (tensor.offset - start) % alignment:
            raise ArtifactCorrupt(
                f"{path}: {printable(tensor.name)} lies at {tensor.offset - start}, which the file's "
                f"alignment of {alignment} does not divide"
            )
        if tensor.offset < end:
            both = printable(f"{last} and {tensor.name}")
            raise ArtifactCorrupt(f"{path}: the tensors {both} overlap")
        last, end = tensor.name, tensor.offset + tensor.nbytes
    if end > size and tensors:
        raise ArtifactCorrupt(f"{path}: truncated, {size} bytes instead of {end}")


class _Cursor:
    """A place in the header that moves on as things are read."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path = path
        self.data = data
        self.at = 0
        self.items = 0

    def damaged(self, what: str) -> ArtifactCorrupt:
        return ArtifactCorrupt(f"{self.path}: a damaged GGUF header: {printable(what)}")

    def require(self, size: int, what: str) -> None:
        """Refuse what would go on beyond the end of the file."""
        if size > len(self.data) - self.at:
            raise ArtifactCorrupt(
                f"{self.path}: truncated or damaged: {printable(what)} at {self.at} would go on beyond the "
                f"file's {len(self.data)} bytes"
            )

    def unpack(self, codes: str, what: str) -> tuple[Any, ...]:
        code = "<" + codes
        size = struct.calcsize(code)
        self.require(size, what)
        found = struct.unpack_from(code, self.data, self.at)
        self.at += size
        return found

    def string(self, what: str, longest: int = _LONGEST_STRING) -> str:
        (size,) = self.unpack("Q", what)
        self.require(size, f"{what} of {size} bytes")
        if size > longest:
            raise self.damaged(f"{what} has {size} bytes, and {longest} at most make sense")
        self.at += size
        try:
            return self.data[self.at - size : self.at].decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8 ({error.reason})") from error

    def value(self, key: str) -> Any:
        """A metadata value: a number, a bool, a string, or a list of one of them."""
        (kind,) = self.unpack("I", key)
        if kind != _ARRAY:
            return self._scalar(kind, key)
        kind, count = self.unpack("IQ", key)
        self.items += count
        if kind not in _SCALARS and kind != _STRING:
            raise self.damaged(f"{key} is a list of the unknown type {kind}")
        size = struct.calcsize("<" + _SCALARS.get(kind, "Q"))
        self.require(count * size, f"{key} with {count} entries")
        if self.items > _MOST_ITEMS:
            raise self.damaged(f"{key} has {count} entries, and {_MOST_ITEMS} at most make sense")
        if kind in _SCALARS:
            return list(self.unpack(f"{count}{_SCALARS[kind]}", key))
        return [self.string(key) for _ in range(count)]

    def _scalar(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string(key)
        if kind not in _SCALARS:
            raise self.damaged(f"{key} has the unknown type {kind}")
        return self.unpack(_SCALARS[kind], key)[0]

    def tensor(self, name: str) -> tuple[tuple[int, ...], TensorType, int]:
        """A tensor's shape, type, and offset from the start of the data."""
        (axes,) = self.unpack("I", name)
        if axes > _MOST_AXES:
            raise self.damaged(f"{name} has {axes} axes, and {_MOST_AXES} at most are known")
        sizes = self.unpack(f"{axes}Q", name)
        number, offset = self.unpack("IQ", name)
        shape = tuple(reversed(sizes))
        if not all(sizes) or math.prod(sizes) > _MOST_WEIGHTS:
            raise self.damaged(f"{name} has the shape {shape}")
        if number in REMOVED_TYPES:
            old, now = REMOVED_TYPES[number]
            raise ArtifactCorrupt(
                f"{self.path}: {printable(name)} is stored as {old}, which llama.cpp no longer reads; take a "
                f"file in {now}"
            )
        if number not in TENSOR_TYPES:
            raise ArtifactCorrupt(
                f"{self.path}: {printable(name)} has the unknown tensor type {number}"
            )
        type_ = TENSOR_TYPES[number]
        if (sizes[0] if sizes else 1) % type_.block:
            raise self.damaged(
                f"{name} has rows of {sizes[0] if sizes else 1}, which {type_.name}'s blocks of "
                f"{type_.block} do not divide"
            )
        return shape, type_, offset
