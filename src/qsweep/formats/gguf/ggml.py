"""Dequantization by ggml's own routines, called in the library that llama-cpp-python brings.

They are exact by definition and run at memory speed on several threads: ctypes releases the
interpreter lock. Where the library is missing, the package ``gguf`` does the same in numpy.
"""

import ctypes
import importlib.util
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from qsweep.base.errors import ArtifactCorrupt, BackendUnavailable
from qsweep.formats.gguf.reader import GGUFFile
from qsweep.formats.gguf.types import TensorType

if TYPE_CHECKING:
    import torch

INSTALL = 'pip install "qsweep[gguf]"'
# Weights that are dequantized before they are cast: what a huge embedding needs beside itself.
_CHUNK = 1 << 22
# Fewer weights than this are not worth another thread.
_PER_THREAD = 1 << 16

_PLAIN = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
}  # fmt: skip
_ACTIVATIONS = ("Q8_1", "Q8_K")

# void (*ggml_to_float_t)(const void * x, float * y, int64_t k)
_ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    """``struct ggml_type_traits`` of ggml.h."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _ToFloat),
        ("from_float_ref", ctypes.c_void_p),
    ]


def dequantize(
    file: GGUFFile, name: str, dtype: "torch.dtype", index: int | None = None
) -> "torch.Tensor":
    """A tensor of a file as a dense one on the CPU, in its own shape.

    Args:
        file: The file.
        name: The tensor's name in it.
        dtype: What float32 values are rounded to at the end.
        index: Picks one matrix of a stack [n, rows, columns], such as one expert, and only that is
            read.

    Raises:
        ArtifactCorrupt: it is stored as what no weights are read from.
        BackendUnavailable: neither ggml's library nor the package ``gguf`` is installed.
    """
    import torch

    info = file.tensors[name]
    raw, shape = file.bytes_of(name), info.shape
    if index is not None:
        raw, shape = raw.view(shape[0], -1)[index], shape[1:]
    plain = plain_dtype(info.type)
    if plain is not None:
        return raw.view(plain).reshape(shape).to(dtype, copy=True)
    if info.type.name in _ACTIVATIONS:
        raise ArtifactCorrupt(
            f"{file.path}: {name} is stored as {info.type.name}, which llama.cpp computes "
            "activations in and reads no weights from"
        )
    columns = shape[-1]
    rows = raw.view(-1, info.type.bytes_of(columns))
    out = torch.empty(len(rows), columns, dtype=dtype)
    step = max(1, _CHUNK // columns)
    buffer = out if dtype == torch.float32 else torch.empty(min(step, len(rows)), columns)
    for at in range(0, len(rows), step):
        part = rows[at : at + step]
        dense = out[at : at + step] if buffer is out else buffer[: len(part)]
        dequantize_rows(part, info.type, dense)
        if buffer is not out:
            out[at : at + step].copy_(dense)
    return out.reshape(shape)


def plain_dtype(type_: TensorType) -> "torch.dtype | None":
    """What PyTorch calls a type of numbers; None of codes."""
    import torch

    found: torch.dtype | None = getattr(torch, _PLAIN.get(type_.name, ""), None)
    return found


def dequantize_rows(rows: "torch.Tensor", type_: TensorType, out: "torch.Tensor") -> None:
    """Dequantize rows, uint8 [rows, bytes of a row], into ``out``, float32 [rows, columns]."""
    import torch

    to_float = _routine(type_)
    if to_float is None:
        out.copy_(dequantize_rows_numpy(rows, type_))
        return
    columns = out.shape[1]
    threads = max(1, min(torch.get_num_threads(), out.numel() // _PER_THREAD))
    bounds = [len(rows) * i // threads for i in range(threads + 1)]

    def part(first: int, last: int) -> None:
        # Addresses by row, since slicing to an empty tensor would lose them.
        source = rows.data_ptr() + first * rows.stride(0)
        target = out.data_ptr() + first * columns * out.element_size()
        to_float(source, target, (last - first) * columns)

    if threads == 1:
        part(0, len(rows))
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, bounds[:-1], bounds[1:]))


def dequantize_rows_numpy(rows: "torch.Tensor", type_: TensorType) -> "torch.Tensor":
    """The same by the package ``gguf``, in numpy: slow, for where ggml's library is missing.

    ``rows`` is uint8 [rows, bytes of a row].
    """
    import torch

    if importlib.util.find_spec("gguf") is None:
        raise BackendUnavailable(f"reading {type_.name} needs llama-cpp-python: {INSTALL}")
    from gguf import GGMLQuantizationType, quants

    try:
        dense = quants.dequantize(rows.numpy(), GGMLQuantizationType(type_.number))
    except (ValueError, NotImplementedError) as error:
        raise BackendUnavailable(f"the package gguf cannot read {type_.name}: {INSTALL}") from error
    return torch.from_numpy(dense)


def _routine(type_: TensorType) -> Callable[[int, int, int], None] | None:
    library = _library()
    if library is None:
        return None
    traits = library.ggml_get_type_traits(type_.number).contents
    if not traits.to_float or (traits.blck_size, traits.type_size) != (type_.block, type_.size):
        return None
    return traits.to_float


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    path = library_path()
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    # A struct laid out otherwise, in some other version, must not be called into.
    traits = library.ggml_get_type_traits(12).contents
    known = (traits.type_name, traits.blck_size, traits.type_size, traits.is_quantized)
    return library if known == (b"q4_K", 256, 144, True) else None


def library_path() -> Path | None:
    """Where llama-cpp-python keeps ggml's base library; None without it. Imports nothing."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        return None
    prefix, suffix = {"win32": ("", ".dll"), "darwin": ("lib", ".dylib")}.get(
        sys.platform, ("lib", ".so")
    )
    path = Path(spec.submodule_search_locations[0]) / "lib" / f"{prefix}ggml-base{suffix}"
    return path if path.exists() else None
