"""Writes a safetensors file as a stream: the header first, then tensor after tensor, piece by piece.

The safetensors library wants all tensors of a file in memory. Format:
https://github.com/huggingface/safetensors#format.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.cleanup import is_in_use
from qsweep.base.files import open_atomic, open_regular
from qsweep.models.safetensors_header import DTYPE_BITS

if TYPE_CHECKING:
    from torch import Tensor

UNSEALED = "0" * 64
"""What stands in the place of a seal while that is computed."""
_NAMES = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"float8_e4m3fn": "F8_E4M3", "int64": "I64", "int32": "I32", "int8": "I8", "uint8": "U8"},
}
# Rows of a tensor are brought into memory about so many bytes at a time.
_PIECE = 1 << 23


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor to write: its shape, its dtype as safetensors spells it, and its bytes in pieces."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[bytes | memoryview]]

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def whole(tensor: "Tensor") -> StreamedTensor:
    """A tensor that is in memory already."""
    return StreamedTensor(dtype_name(tensor.dtype), tuple(tensor.shape), lambda: [_bytes(tensor)])


def by_rows(
    shape: tuple[int, ...], dtype: "Any", rows: "Callable[[int, int], Tensor]"
) -> StreamedTensor:
    """A tensor [n, ...] of a torch dtype, of which ``rows(start, stop)`` are fetched when needed."""
    name = dtype_name(dtype)
    row = max(1, math.prod(shape[1:]) * DTYPE_BITS[name] // 8)
    step = max(1, _PIECE // row)

    def pieces() -> Iterable[memoryview]:
        for start in range(0, shape[0], step):
            yield _bytes(rows(start, min(start + step, shape[0])).to(dtype))

    return StreamedTensor(name, shape, pieces)


def dtype_name(dtype: Any) -> str:
    """What safetensors calls a torch dtype."""
    return _NAMES[str(dtype).removeprefix("torch.")]


def write_safetensors(
    path: Path,
    tensors: Mapping[str, StreamedTensor],
    metadata: Mapping[str, str] | None = None,
    *,
    seal: str | None = None,
) -> str:
    """Write a file that appears whole or not at all.

    Args:
        path: Where; what was there is replaced.
        tensors: In the order in which they lie in the file.
        metadata: Texts beside them.
        seal: The name of one more text: the SHA-256 of the file (:func:`seal_of`).

    Returns:
        The seal, also where none was asked for.

    Raises:
        OSError: names ``path``.
        ValueError: the pieces of a tensor are not as many bytes as its shape says.
    """
    header: dict[str, Any] = {"__metadata__": {**(metadata or {})}}
    if seal is not None:
        header["__metadata__"][seal] = UNSEALED
    start = 0
    for name, tensor in tensors.items():
        offsets = [start, start := start + tensor.size]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    remove_leftovers(path)
    with open_atomic(path) as file:
        digest = hashlib.sha256(head)
        file.write(head)
        for name, tensor in tensors.items():
            _write_tensor(name, tensor, file, digest)
        if seal is not None:
            file.seek(head.index(_mark(seal, UNSEALED)))
            file.write(_mark(seal, digest.hexdigest()))
    return digest.hexdigest()


def seal_of(path: Path, name: str, value: str) -> str:
    """The SHA-256 of a file in whose header zeros stand in place of the seal's ``value``."""
    with open_regular(path) as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
        marked = header.replace(_mark(name, value), _mark(name, UNSEALED), 1)
        digest = hashlib.sha256(length + marked)
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of this file left beside it."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if not is_in_use(left):
                left.unlink()


def _write_tensor(name: str, tensor: StreamedTensor, file: Any, digest: Any) -> None:
    written = 0
    for piece in tensor.pieces():
        view = memoryview(piece)
        file.write(view)
        digest.update(view)
        written += view.nbytes
    if written != tensor.size:
        raise ValueError(f"{name}: {written} bytes instead of {tensor.size}")


def _mark(name: str, value: str) -> bytes:
    return json.dumps({name: value}, separators=(",", ":"))[1:-1].encode()


def _bytes(tensor: "Tensor") -> memoryview:
    import torch

    flat: memoryview = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
    return flat
