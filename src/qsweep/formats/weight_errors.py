"""How far an artifact's weights are from its base's: one pass, tensor by tensor.

Both sides are read when their turn comes and let go after it, so that neither model is ever there
as a whole; what is dequantized is what the dense engine measures.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, QsweepError
from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.formats.container import container
from qsweep.formats.stored import StoredTensor
from qsweep.formats.tensor_table import TensorRow, in_order, place_of
from qsweep.formats.weights import open_weights
from qsweep.models.facts import distinct_weights, read_config, read_tensors
from qsweep.models.source import ModelFacts

if TYPE_CHECKING:
    import torch

VERSION = 1
"""Of the table: raised when a change may move one of its numbers."""

# Weights that are compared at a time: four passes over them in float32 take so much memory.
_CHUNK = 1 << 24
# What rearranging numbers in float32 costs, as converters do that store a norm plus one.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Differences:
    """What sets a tensor apart from the base's; see :class:`TensorRow`."""

    relative_error: float | None
    max_error: float | None
    constant: int = 0
    non_finite: int = 0
    changed: float = 0.0


def tensor_table(
    artifact: Artifact, facts: ModelFacts, device: str, progress: Progress = silent
) -> list[TensorRow]:
    """The table of an artifact's tensors.

    Args:
        artifact: Whose.
        facts: The base: the unquantized model that it was made from.
        device: Where tensors are dequantized and compared.
        progress: Is told the share that is done.

    Raises:
        ArtifactCorrupt: A file is unreadable, or weights are NaN or infinite where the base's are
            numbers: nothing could be measured with them. The line names the tensor.
    """
    kind = container(artifact.format)
    stored = {tensor.name: tensor for tensor in _stored(artifact)}
    base = distinct_weights(read_tensors(facts.path), read_config(facts.path))
    handles = open_weights(facts.path)
    dense = kind.dense_weights(artifact, facts.path, device)
    if dense is None:
        dense = {name: file.get_slice(name) for name, file in open_weights(artifact.files).items()}
    parts = kind.stored_as(artifact, facts.path, stored)
    linears = {f"{name}.weight" for name in facts.linears}
    total = sum(tensor.bits for tensor in stored.values())
    rows: list[TensorRow] = []
    broken: list[str] = []
    names = [name for name in dense if name in base or name in stored]
    for number, name in enumerate(names):
        progress("compare weights", number / len(names))
        own = [stored[part] for part in parts.get(name, (name,)) if part in stored]
        if not own and stored:
            continue  # it is not in the artifact, and the base's own is measured in its place
        shape = base[name].shape if name in base else ()
        quantized = any(tensor.quantized for tensor in own)
        weight = dense[name][...]
        other = handles[name].get_slice(name) if name in base else None
        found = differences(weight, other, device, numbers=not quantized)
        type_ = "+".join(dict.fromkeys(tensor.type for tensor in own))
        if found.non_finite:
            broken.append(f"{name} ({type_}): {found.non_finite} of {weight.numel()} weights")
        # An expert that lies in a stack with others is a part of it.
        held = sum(tensor.weights for tensor in own) or weight.numel()
        bpw = sum(tensor.bits for tensor in own) / held
        rows.append(
            TensorRow(
                name=name,
                type=type_,
                bpw=bpw,
                weights=weight.numel(),
                share=bpw * min(weight.numel(), held) / total if total else 0.0,
                quantized=quantized,
                linear=name in linears or _is_expert(name, shape),
                relative_error=found.relative_error,
                max_error=found.max_error,
                constant=found.constant,
                changed=None if quantized else found.changed,
            )
        )
    if broken:
        more = f" (and so in {len(broken) - 1} more tensors)" if len(broken) > 1 else ""
        raise ArtifactCorrupt(
            f"{artifact.files}: {broken[0]} are NaN or infinite, as damaged scales make them{more}; "
            "nothing can be measured with it"
        )
    return in_order(rows)


def left_out(rows: "list[TensorRow]", path: Path) -> list[str]:
    """The base's tensors, by name, that an artifact does not have.

    Nothing where it has as many weights under names of its own: a library may rename what it saves.

    Args:
        rows: Of its table.
        path: The base's directory.
    """
    base = distinct_weights(read_tensors(path), read_config(path))
    known = {row.name for row in rows}
    missing = {name: info.count for name, info in base.items() if name not in known}
    renamed = sum(row.weights for row in rows if row.name not in base)
    return [] if renamed >= sum(missing.values()) else sorted(missing)


def differences(
    weight: "torch.Tensor", base: Any, device: str, *, numbers: bool = False
) -> Differences:
    """What sets a tensor apart from the base's.

    Args:
        weight: The artifact's, dense, [...].
        base: The base's, or what gives it when it is indexed; None where it has none.
        device: Where they are compared.
        numbers: Whether it is stored as numbers, not codes: then what rounding them to one of the
            types of 16 bits changes is no change.
    """
    import torch

    matrices = weight.shape[0] if weight.ndim > 2 else 1
    if base is not None:
        base = base[...]
    if base is not None and base.shape != weight.shape:
        base = base.reshape(weight.shape) if base.numel() == weight.numel() else None
    if not weight.numel() or not weight.is_floating_point():
        return Differences(None, None)
    ours = weight.reshape(matrices, -1)
    theirs = None if base is None else base.reshape(matrices, -1)
    squares = errors = 0.0
    largest, non_finite = 0.0, 0
    rounded = {dtype: 0.0 for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    spread = torch.zeros(matrices, dtype=torch.bool)
    for index, one, other in _chunks(ours, theirs, device):
        finite = one.isfinite()
        if not bool(finite.all()):
            wrong = ~finite if other is None else ~finite & other.isfinite()
            non_finite += int(wrong.sum())
            continue
        spread[index] |= bool((one != ours[index, 0].to(one)).any()) | (
            other is not None and bool((other == theirs[index, 0].to(other)).all())  # type: ignore[index]
        )
        if other is None:
            continue
        distance = one - other
        squares += float(other.double().square().sum())
        error = float(distance.double().square().sum())
        errors += error
        largest = max(largest, float(distance.abs().max()))
        for dtype in rounded if numbers else ():
            if error:
                rounded[dtype] += float((one - other.to(dtype).float()).double().square().sum())
    constant = 0 if ours.shape[1] < 2 else int((~spread).sum())
    if theirs is None:
        return Differences(None, None, 0, non_finite)
    relative = math.sqrt(errors / squares) if squares else None if errors else 0.0
    change = math.sqrt(min(rounded.values()) / squares) if squares else math.sqrt(errors)
    return Differences(
        relative, largest, constant, non_finite, change if change > _ROUNDING else 0.0
    )


def _chunks(
    ours: "torch.Tensor", theirs: "torch.Tensor | None", device: str
) -> "Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]":
    """Both in float32, some of a matrix's weights at a time, with the number of the matrix."""
    for index in range(len(ours)):
        for start in range(0, ours.shape[1], _CHUNK):
            place = (index, slice(start, start + _CHUNK))
            other = None if theirs is None else theirs[place].to(device).float()
            yield index, ours[place].to(device).float(), other


def _stored(artifact: Artifact) -> list[StoredTensor]:
    try:
        return container(artifact.format).stored(artifact.files)
    except ArtifactCorrupt:
        raise
    except QsweepError:
        return []  # its files do not tell; errors are known all the same


def _is_expert(name: str, shape: tuple[int, ...]) -> bool:
    # Stacked, they are no matrices, and so none of the linear layers that facts name.
    layer, kind = place_of(name)
    return layer is not None and "expert" in kind and len(shape) == 3
