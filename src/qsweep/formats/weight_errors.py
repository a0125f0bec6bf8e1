"""How far an artifact's weights are from its base's: one pass, tensor by tensor.

Both sides are read when their turn comes and let go after it, so that neither model is ever there
as a whole; what is dequantized is what the dense engine measures.
"""

import math
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
from qsweep.models.facts import distinct_weights, is_of_text, read_config, read_tensors
from qsweep.models.source import ModelFacts

if TYPE_CHECKING:
    import torch

VERSION = 1
"""Of the table: raised when a change may move one of its numbers."""

# Weights that are compared at a time on a CPU: their numbers stay in its cache.
_CHUNK = 1 << 20
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
    named = [name for name in dense if name in base or name in stored or name in parts]
    # What the base has comes first: a head that is its embedding once more takes nothing of its own.
    names = sorted(named, key=lambda name: name not in base)
    used: set[str] = set()
    for number, name in enumerate(names):
        progress("compare weights", number / len(names))
        own = [stored[part] for part in parts.get(name, (name,)) if part in stored]
        if name not in base and used.issuperset(tensor.name for tensor in own):
            continue
        used.update(tensor.name for tensor in own)
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
    """The base's tensors, by name, that an artifact does not have; those of images and sounds apart.

    Nothing where it has as many weights under names of its own: a library may rename what it saves.

    Args:
        rows: Of its table.
        path: The base's directory.
    """
    base = distinct_weights(read_tensors(path), read_config(path))
    known = {row.name for row in rows}
    missing = {n: info.count for n, info in base.items() if n not in known and is_of_text(n)}
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
    if base is not None:
        base = base[...]
    if base is not None and base.shape != weight.shape:
        base = base.reshape(weight.shape) if base.numel() == weight.numel() else None
    if not weight.numel() or not weight.is_floating_point():
        return Differences(None, None)
    matrices = weight.shape[0] if weight.ndim > 2 else 1
    sums = _Sums(numbers=numbers)
    ours = weight.reshape(matrices, -1)
    for index, matrix in enumerate(ours):
        other = None if base is None else base.reshape(matrices, -1)[index]
        step = _CHUNK if device == "cpu" else _CHUNK * 16
        for start in range(0, len(matrix), step):
            piece = matrix[start : start + step].to(device).float()
            piece_of_base = None if other is None else other[start : start + step]
            sums.add(piece, None if piece_of_base is None else piece_of_base.to(device))
        if other is not None and _is_one_number(matrix) and not _is_one_number(other):
            sums.constant += 1
    return sums.result(compared=base is not None)


class _Sums:
    """Sums over pieces of a tensor and of the base's."""

    def __init__(self, *, numbers: bool):
        import torch

        self.squares = self.errors = self.largest = 0.0
        self.constant = self.non_finite = 0
        types = (torch.bfloat16, torch.float16) if numbers else ()
        self.rounded = dict.fromkeys(types, 0.0)

    def add(self, ours: "torch.Tensor", base: "torch.Tensor | None") -> None:
        """Take in a piece, float32 [n], and the base's [n]."""
        import torch

        double = torch.float64
        if base is None:
            self.non_finite += int((~ours.isfinite()).sum())
            return
        theirs = base.float()
        distance = ours - theirs
        error = float(torch.linalg.vector_norm(distance, dtype=double)) ** 2
        if not math.isfinite(error):
            self.non_finite += int((~ours.isfinite() & theirs.isfinite()).sum())
            return
        self.errors += error
        self.squares += float(torch.linalg.vector_norm(theirs, dtype=double)) ** 2
        self.largest = max(self.largest, float(torch.linalg.vector_norm(distance, math.inf)))
        for dtype in self.rounded if error else ():
            away = ours - theirs.to(dtype).float()
            self.rounded[dtype] += float(torch.linalg.vector_norm(away, dtype=double)) ** 2

    def result(self, *, compared: bool) -> Differences:
        """What they come to."""
        if not compared:
            return Differences(None, None, 0, self.non_finite)
        relative = math.sqrt(self.errors / self.squares) if self.squares else None
        least = math.sqrt(min([self.errors, *self.rounded.values()]) / (self.squares or 1))
        changed = least if least > _ROUNDING else 0.0
        return Differences(relative, self.largest, self.constant, self.non_finite, changed)


def _is_one_number(matrix: "torch.Tensor") -> bool:
    # Nearly always the first few tell.
    return bool((matrix[:64] == matrix[0]).all()) and bool((matrix == matrix[0]).all())


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
