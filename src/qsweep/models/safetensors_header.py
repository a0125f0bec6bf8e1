"""The header of a safetensors file: what tensors there are, and whether the file is whole.

Format: https://github.com/huggingface/safetensors#format. No weight is read.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.base.files import open_regular

# Stored bits per element.
DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    "F4": 4,
}
# As struct spells them.
_INTEGERS = {"I64": "q", "I32": "i", "I16": "h", "U64": "Q", "U32": "I", "U16": "H"}
_LONGEST = 100_000_000


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a safetensors file."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it: F32, BF16, I32."""
    file: Path
    start: int = 0
    """Where in the file its bytes begin."""

    @property
    def count(self) -> int:
        """Number of elements."""
        total = 1
        for size in self.shape:
            total *= size
        return total

    @property
    def bits(self) -> int:
        """Stored bits, all elements together."""
        return self.count * DTYPE_BITS[self.dtype]


def read_header(file: Path) -> dict[str, TensorHeader]:
    """The tensors of a safetensors file by name.

    Raises:
        ConfigError: the file is cut short or damaged; the line names the tensor where one is wrong.
    """
    return read_annotated(file)[0]


def read_annotated(
    file: Path, longest: int = _LONGEST
) -> tuple[dict[str, TensorHeader], dict[str, str]]:
    """The tensors of a safetensors file by name, and the texts that its header holds beside them.

    Args:
        file: The file.
        longest: A header of more bytes is refused unread.

    Raises:
        ConfigError: as :func:`read_header`.
    """
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            # 8 bytes: length of the header, little-endian; then JSON; then the data.
            length = int.from_bytes(stream.read(8), "little")
            if length > longest:
                raise ValueError("its header is too long")
            text = stream.read(length)
        header = json.loads(text, object_pairs_hook=_each_once)
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        notes = header.pop("__metadata__", None) or {}
        if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
            notes = {}  # a fault that concerns no tensor
        found = {name: _tensor(name, entry, file, 8 + length) for name, entry in header.items()}
        end = max((info.start + info.bits // 8 for info in found.values()), default=8 + length)
        if size != end:
            raise ValueError(f"{size} bytes instead of {end}")
        _require_no_gaps(found, 8 + length)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not a whole safetensors file ({error})") from error
    return found, notes


def tensor_bytes(info: TensorHeader, chunk: int = 1 << 23) -> Iterator[bytes]:
    """A tensor's bytes as they lie in its file, in pieces of at most ``chunk``.

    Raises:
        ConfigError: the file has become shorter.
    """
    left = info.bits // 8
    with open_regular(info.file) as stream:
        stream.seek(info.start)
        while left:
            part = stream.read(min(chunk, left))
            if not part:
                raise ConfigError(f"{info.file}: not a whole safetensors file (it was cut short)")
            left -= len(part)
            yield part


def read_integers(info: TensorHeader) -> tuple[int, ...]:
    """The elements of a small tensor of integers, such as a shape.

    Raises:
        ConfigError: it holds no integers.
    """
    if info.dtype not in _INTEGERS:
        raise ConfigError(f"{info.file}: a tensor of {info.dtype} where integers are due")
    with open_regular(info.file) as stream:
        stream.seek(info.start)
        found = stream.read(info.bits // 8)
    return struct.unpack(f"<{info.count}{_INTEGERS[info.dtype]}", found)


def same_content(one: TensorHeader, other: TensorHeader) -> bool:
    """Whether two tensors are equal, bit by bit; reads no further than to the first difference."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    left = one.bits // 8
    with open_regular(one.file) as first, open_regular(other.file) as second:
        first.seek(one.start)
        second.seek(other.start)
        size = 1 << 16
        while left > 0:
            size = min(2 * size, 1 << 24, left)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def _tensor(name: str, entry: Any, file: Path, data: int) -> TensorHeader:
    if not isinstance(entry, Mapping) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{name} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"unknown dtype {dtype} of {name}")
    if not _are_sizes(shape):
        raise ValueError(f"{name} has the shape {json.dumps(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} has the offsets {json.dumps(offsets)}")
    info = TensorHeader(tuple(shape), dtype, file, data + offsets[0])
    if 8 * (offsets[1] - offsets[0]) != info.bits:
        raise ValueError(
            f"{name} has {offsets[1] - offsets[0]} bytes for the shape {list(shape)} in {dtype}"
        )
    return info


def _require_no_gaps(tensors: Mapping[str, TensorHeader], data: int) -> None:
    end = data
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].bits)):
        if info.start != end:
            what = "overlaps the tensor before it" if info.start < end else "has a gap before it"
            raise ValueError(f"{name} {what}")
        end = info.start + info.bits // 8


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)} is there twice")
    return found
