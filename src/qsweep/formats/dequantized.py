"""A model to start from that is itself quantized: dequantized once, into an ordinary checkpoint.

Many models are released in FP8 or MXFP4 alone. Their weights are read as those of any artifact are
(:mod:`qsweep.formats.container`), rounded to 16 bits and written down as a plain checkpoint in the
store; everything after that (facts, reference, quantizers, converters) sees an ordinary directory.
What it was made from is told in the entry's manifest, and from there in every record.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, ConfigError
from qsweep.base.file_hashes import file_hash
from qsweep.base.files import write_json
from qsweep.base.keys import key_of
from qsweep.base.manifest import MANIFEST, open_entry
from qsweep.base.store import Kind, Store
from qsweep.formats.artifact import Artifact, Size
from qsweep.formats.artifact_files import counting_files, find_place, is_gguf
from qsweep.formats.container import Container
from qsweep.formats.container import container as container_named
from qsweep.formats.hf import ShardWriter, companions, copy_companions
from qsweep.formats.recognize import recognize
from qsweep.formats.stored import StoredTensor
from qsweep.formats.weights import LazyWeight, find_settings, settings_files, stored_headers
from qsweep.models.facts import read_config
from qsweep.models.files import check_directory, saved_weight_files

if TYPE_CHECKING:
    import torch

# Raised when a base is dequantized otherwise than before.
VERSION = 1
_KIND: Kind = "models"
_PARTS = ("text_config", "llm_config")
_FIELD = "quantization_config"


def base_directory(path: Path, store: Store) -> Path:
    """The unquantized checkpoint to start from: ``path`` itself, unless it is quantized.

    What is quantized is dequantized into the store, or found there; of two who want the same, one
    makes it and the other waits.

    Args:
        path: What the user gave: a directory, or a GGUF file.
        store: Where the dequantized checkpoint is kept.

    Raises:
        ConfigError: It is quantized in a way that cannot be undone here, or its weights cannot be
            read; the line says why.
        BackendUnavailable: The library that reads them is not installed.
        IncompatibleTrial: It is a GGUF file of an architecture that transformers has no tables for.
    """
    try:
        path = _gguf_alone(path) or path
        if (found := _quantized(path)) is None:
            return path
        container, stored = found
        container.require_library()
        called = describe(container, stored)
        identity = {"files": _content(path, store), "container": container.name, "version": VERSION}
        if store.look(_KIND, key_of(identity)) is None:
            print(
                f"note: {path} is quantized ({called}); it is dequantized to 16 bits, once",
                file=sys.stderr,
                flush=True,
            )
        entry, _ = store.build(_KIND, identity, partial(_dequantize, path, container, called))
        return entry.path
    except ArtifactCorrupt as error:
        raise ConfigError(str(error)) from error


def dequantized_from(path: Path) -> str | None:
    """What the checkpoint in a directory was dequantized from, such as ``fp8 block 128x128``.

    None of one that is not the store's: nobody knows what was done to it.

    Raises:
        ArtifactCorrupt: It is the store's, and damaged.
    """
    if path.parent.name != _KIND or not (path / MANIFEST).is_file():
        return None
    found = open_entry(path).content.get("dequantized_from")
    return found if isinstance(found, str) else None


def describe(container: Container, stored: Iterable[StoredTensor]) -> str:
    """What most of a checkpoint's quantized weights are, in few words, with the container's name."""
    counts: Counter[str] = Counter()
    for tensor in stored:
        if tensor.quantized:
            counts[tensor.type] += tensor.weights
    if not counts:
        return f"{container.name} unquantized"
    usual = counts.most_common(1)[0][0]
    return usual if usual.startswith(container.name) else f"{container.name} {usual}"


def _gguf_alone(path: Path) -> Path | None:
    """The GGUF file that stands for a model where there is no checkpoint of it."""
    if path.is_dir() and ((path / "config.json").exists() or not any(path.glob("*.gguf"))):
        return None
    found = find_place(path, "model.path")
    return found if is_gguf(found) else None


def _quantized(path: Path) -> tuple[Container, list[StoredTensor]] | None:
    """What a model is quantized in, and how its tensors are stored; None if it is not."""
    if path.is_file():
        return container_named("gguf"), container_named("gguf").stored(path)
    config = read_config(path)
    parts = [config, *(config.get(name) for name in _PARTS)]
    stated = [p[_FIELD] for p in parts if isinstance(p, Mapping) and p.get(_FIELD) is not None]
    if stated and not (isinstance(stated[0], Mapping) and stated[0]):
        return None  # for read_facts to refuse
    if not stated and find_settings(path) is None:
        return None
    check_directory(path)
    try:
        container = recognize(path)
        tensors = container.stored(path)
    except ConfigError as error:
        if not stated:
            return None  # a file that lies beside an unquantized model
        raise ConfigError(f"{error}; give the unquantized model it was made from") from error
    if any(tensor.quantized for tensor in tensors):
        return container, tensors
    if not stated:
        return None
    raise ConfigError(
        f"{path}: config.json says that it is quantized ({stated[0].get('quant_method')}), and none "
        "of its weights is; take quantization_config out if they are not"
    )


def _content(path: Path, store: Store) -> str:
    """A hash of all files that the dequantized checkpoint is made of."""
    if path.is_file():
        return key_of({name: file_hash(store, f) for name, f in counting_files(path).items()})
    files = {*saved_weight_files(path), *settings_files(path), *companions(path)}
    return key_of({str(f.relative_to(path)): file_hash(store, f) for f in sorted(files)})


def _dequantize(path: Path, container: Container, called: str, out: Path) -> dict[str, Any]:
    """Write the plain checkpoint, tensor by tensor; what the manifest says of it."""
    import torch

    if path.is_file():
        return _dequantize_gguf(path, called, out)
    artifact = Artifact(path, container.name, Size(0, 0, 0, 0, 0))
    state = container.dense_weights(artifact, path, "cpu")
    assert state is not None
    dtype = _half((h.dtype, h.shape) for h in stored_headers(path).values())
    writer, error, total = ShardWriter(out), 0.0, 0.0
    for name, value in state.items():
        tensor: torch.Tensor = value[...]
        if isinstance(value, LazyWeight):
            rounded = tensor.to(dtype)
            if not bool(rounded.isfinite().all()) and bool(tensor.isfinite().all()):
                raise ArtifactCorrupt(
                    f"{path}: {name} has weights beyond {_name(dtype)}, which "
                    "its other tensors are in"
                )
            error += float((rounded.to(torch.float32) - tensor).square().sum(dtype=torch.float64))
            total += float(tensor.square().sum(dtype=torch.float64))
            tensor = rounded
        writer.add(name, tensor)
    writer.close()
    kind = _name(dtype)
    write_json(out / "config.json", _plain_config(read_config(path), kind))
    copy_companions(path, out)
    return {
        "dequantized_from": called,
        "source": str(path),
        "dtype": kind,
        # Of the weights that were codes: the root mean square of what rounding changed, relative.
        "rounding": (error / total) ** 0.5 if total else 0.0,
    }


def _dequantize_gguf(path: Path, called: str, out: Path) -> dict[str, Any]:
    from qsweep.formats.gguf.as_checkpoint import checkpoint_from_gguf
    from qsweep.formats.gguf.reader import read_gguf

    file = read_gguf(path)
    kind = _name(_half((t.type.name, t.shape) for t in file.tensors.values()))
    try:
        made = checkpoint_from_gguf(file, out, kind)
    except OverflowError:  # of float16: its unquantized tensors are, and others are of any size
        kind = "bfloat16"
        made = checkpoint_from_gguf(file, out, kind)
    for line in made.notes:
        print(f"note: {path}: {line}", file=sys.stderr, flush=True)
    return {
        "dequantized_from": called,
        "source": str(path),
        "dtype": kind,
        "notes": made.notes,
        "rounding": made.rounding,
    }


def _half(tensors: Iterable[tuple[str, Sequence[int]]]) -> "torch.dtype":
    """bfloat16, unless what is not quantized is mostly float16; of tensors' types and shapes."""
    import torch

    counts = dict.fromkeys(("BF16", "F16"), 0)
    for kind, shape in tensors:
        if kind in counts and len(shape) > 1:
            counts[kind] += math.prod(shape)
    return torch.float16 if counts["F16"] > counts["BF16"] else torch.bfloat16


def _name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")


def _plain_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A configuration as that of an unquantized model of this dtype."""
    plain = {name: value for name, value in config.items() if name != _FIELD}
    for name in _PARTS:
        if isinstance(plain.get(name), Mapping):
            plain[name] = {n: value for n, value in plain[name].items() if n != _FIELD}
    for part in (plain, *(plain[n] for n in _PARTS if isinstance(plain.get(n), dict))):
        part |= {field: dtype for field in ("dtype", "torch_dtype") if field in part}
    return plain if {"dtype", "torch_dtype"} & plain.keys() else plain | {"dtype": dtype}
