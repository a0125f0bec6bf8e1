"""The tensors of an artifact beside those of the model: their sizes, and which are equal."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qsweep.formats.belonging.difference import Difference
from qsweep.formats.stored import StoredTensor
from qsweep.models.facts import distinct_weights, is_embedding, is_head
from qsweep.models.safetensors_header import TensorHeader, same_content

# What a method that moves scales from activations into weights leaves changed by right.
_NORM = re.compile(r"(^|[._])(ln|norm|layernorm)|norm\d*\.(weight|bias)$|ln_\w+\.(weight|bias)$")
_FOLDING = ("awq", "compressed-tensors")
_TIED = {"tie_word_embeddings": True}
_SHOWN = 5
_ROWS = 8192


def compare_shapes(
    stored: Iterable[StoredTensor],
    headers: Mapping[str, TensorHeader],
    base: Mapping[str, TensorHeader],
) -> list[Difference]:
    """Tensors that have another size than the model's of that name, embeddings first.

    Args:
        stored: How the artifact stores each of its dense tensors.
        headers: Of its files.
        base: Of the model's.
    """
    found = []
    for tensor in sorted(stored, key=lambda one: not is_embedding(one.name)):
        wanted = base.get(tensor.name)
        if wanted is None:
            continue
        own = None if tensor.quantized else headers.get(tensor.name)
        if own is not None and own.shape != wanted.shape:
            line = f"{tensor.name} is {list(own.shape)} instead of {list(wanted.shape)}"
            found.append(Difference(line))
        elif own is None and tensor.weights != wanted.count:
            line = f"{tensor.name} has {tensor.weights} weights instead of {wanted.count}"
            found.append(Difference(line))
    return found


def compare_heads(
    stored: Iterable[StoredTensor],
    headers: Mapping[str, TensorHeader],
    base: Mapping[str, TensorHeader],
) -> list[Difference]:
    """Whether one has an output head of its own where the other uses its embedding."""
    heads = {tensor.name for tensor in stored if is_head(tensor.name)}
    # Stored twice is no head of its own, whatever a configuration says.
    repeated = headers.keys() - distinct_weights(headers, _TIED).keys()
    theirs = {name for name in distinct_weights(base, _TIED) if is_head(name)}
    if not base or bool(heads - repeated) == bool(theirs):
        return []
    if theirs:
        return [Difference("no output head of its own, and the model has one")]
    return [Difference("an output head of its own, where the model uses its embedding")]


def compare_content(
    stored: Iterable[StoredTensor],
    headers: Mapping[str, TensorHeader],
    base: Mapping[str, TensorHeader],
) -> dict[str, Any]:
    """Which of the tensors that both hold as numbers are equal: bit by bit, in the coarser dtype.

    Returns:
        ``compared`` and ``equal``, numbers of tensors; ``differing``, the names of the others.
    """
    pairs = [
        (tensor.name, headers[tensor.name], base[tensor.name])
        for tensor in stored
        if not tensor.quantized and tensor.name in headers and tensor.name in base
    ]
    differing = [name for name, own, other in pairs if not _equal(name, own, other)]
    return {"compared": len(pairs), "equal": len(pairs) - len(differing), "differing": differing}


def content_notes(compared: Mapping[str, Any], container: str, method: str | None) -> list[str]:
    """What is said of tensors that differ from the model's though nothing quantized them."""
    names = list(compared["differing"])
    if container == "hf":
        if not names:
            return ["every tensor is the model's own"]
        return [f"{len(names)} of {compared['compared']} tensors differ from the model's"]
    folded = [name for name in names if method in _FOLDING and _NORM.search(name)]
    rest = [name for name in names if name not in folded]
    lines = []
    if rest:
        shown = ", ".join(rest[:_SHOWN]) + (", …" if len(rest) > _SHOWN else "")
        lines.append(
            f"{len(rest)} of {compared['compared']} tensors that are not quantized differ from the "
            f"model's: {shown}"
        )
    if folded:
        lines.append(f"scales are folded into {len(folded)} norms")
    return lines


def _equal(name: str, own: TensorHeader, base: TensorHeader) -> bool:
    if own.shape != base.shape:
        return False
    if own.dtype == base.dtype:
        return same_content(own, base)
    import torch

    for one, other in zip(_rows(name, own), _rows(name, base), strict=True):
        coarser = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
        if one.dtype.itemsize == other.dtype.itemsize:
            coarser = one.dtype  # float16 of bfloat16: what the artifact's writer cast it to
        if not torch.equal(one.to(coarser), other.to(coarser)):
            return False
    return True


def _rows(name: str, info: TensorHeader) -> Iterator[Any]:
    """A tensor in pieces that fit in memory, whatever its size."""
    from safetensors import safe_open

    with safe_open(Path(info.file), framework="pt", device="cpu") as file:
        if not info.shape:
            yield file.get_tensor(name)
            return
        part = file.get_slice(name)
        for start in range(0, info.shape[0], _ROWS):
            yield part[start : start + _ROWS]
