"""GGUF files that somebody else made: are they laid out as ours would be, and of the same weights?

The rules that lead back to the checkpoint (:mod:`qsweep.formats.gguf.layout`) are proven on our own
conversion. They hold for another file if each tensor, brought back by them, is the checkpoint's: bit
for bit where it is stored unquantized, and otherwise to within what its type rounds away.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import AnotherModel, UnknownLayout
from qsweep.formats.gguf.header import printable
from qsweep.formats.gguf.hyperparameters import metadata_differences
from qsweep.formats.gguf.reader import find_file, read_gguf
from qsweep.formats.gguf.variants import EMBEDDING, HEAD, Fitted, fit, is_extra
from qsweep.models.facts import is_partial

if TYPE_CHECKING:
    import torch

    from qsweep.formats.artifact import Artifact
    from qsweep.formats.gguf.reader import GGUFFile
    from qsweep.formats.gguf.types import TensorType
    from qsweep.models.source import SourceModel
    from qsweep.quantizers.conversion.base import UnquantizedFile

# Half a unit in the last place, as a share of a number: what rounding to a type changes at most.
_ROUNDING = {"F64": 2.0**-20, "F32": 2.0**-20, "F16": 2.0**-11, "BF16": 2.0**-8}
_SMALLEST = {"F16": 2.0**-24}
# The root mean square error of a tensor as a share of its own, by the least bits per weight of its
# type: several times what rounding to nearest gives on weights of a normal distribution, and more than
# it gives on those where every block has an outlier.
_LARGEST_ERRORS = ((8, 0.03), (6, 0.08), (5, 0.15), (4, 0.3), (3, 0.5))
# Of types of less bits, some round most weights of a common model to zero; but a tensor that has
# nothing to do with another one has a cosine of about 0 with it.
_LEAST_COSINE = 0.15
# So alike are a row and its rounding, as long as its type has two bits; and models of one family.
_ALIKE, _FAMILY = 0.5, 0.5
_PROBED_ROWS = 8


@dataclass(frozen=True)
class Comparison:
    """What became of a checkpoint's tensors in a file.

    Attributes:
        problem: Why the file is not one of this model, in one line; None if it is.
        notes: What it does otherwise than our own conversion, and rightly.
        errors: Root mean square error of each tensor of the checkpoint as a share of its own, as far
            as they were compared.
        settings: Numbers by which llama.cpp computes from the file otherwise than from our own
            conversion, a line each. The dense model does not know them.
        unquantized: How many tensors are stored unquantized, and ``equal``, how many of them are the
            checkpoint's to within their type's rounding.
    """

    problem: str | None = None
    notes: tuple[str, ...] = ()
    errors: Mapping[str, float] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    unquantized: int = 0
    equal: int = 0


def difference(base: "UnquantizedFile", file: "GGUFFile") -> str | None:
    """What is in a file where our own conversion would have something else, or None."""
    return compare(base, file).problem


def compare(base: "UnquantizedFile", file: "GGUFFile") -> Comparison:
    """Compare every tensor of a file with the checkpoint's, those that are quickly told first.

    Args:
        base: The model and its unquantized conversion, which tells what lies where.
        file: A file of any maker.
    """
    own = read_gguf(base.path)
    if file.architecture != own.architecture:
        what = printable(file.architecture) or "of no architecture"
        return Comparison(f"it is {what}, and the model {own.architecture}")
    fitted = fit(base.layout, base.checkpoint, file)
    if fitted.missing is not None:
        return Comparison(f"it has no tensor {fitted.missing}", fitted.notes)
    if problem := _unknown(own, fitted) or _misshapen(base, fitted):
        return Comparison(problem, fitted.notes)
    errors: dict[str, float] = {}
    plain: list[str] = []
    others: list[str] = []
    for name, rule in fitted.layout.rules.items():
        quantized = any(fitted.file.tensors[t].type.quantized for t in rule.tensors)
        (others if quantized or name not in base.checkpoint.infos else plain).append(name)
    changed = []
    for name in plain:
        source, found = _pair(base, fitted, name)
        errors[name] = _error(source, found)
        if not _equal(source, found, fitted, name):
            changed.append(name)
    told = partial(
        Comparison,
        notes=fitted.notes,
        errors=errors,
        unquantized=len(plain),
        equal=len(plain) - len(changed),
    )
    if changed:
        return told(_changed(base, fitted, changed, len(plain)))
    for name in others:
        source, found = _pair(base, fitted, name)
        errors[name] = _error(source, found)
        tensor = fitted.file.tensors[fitted.layout.rules[name].tensor]
        if problem := _mismatch(name, tensor.name, tensor.type, source, found):
            return told(problem)
    return told(settings=tuple(metadata_differences(file, own)))


def foreign_artifact(model: "SourceModel", path: Path, out: Path) -> "Artifact":
    """The artifact that a GGUF file of any maker is.

    The file stays where it is, and so do its parts; ``out`` gets how the checkpoint lies in them,
    unless the model's weights are not here: then the file alone says what it holds.

    Args:
        model: The unquantized model that it is said to be one of.
        path: The file, one of its parts, or a directory with one such model.
        out: The directory, which exists.

    Raises:
        ArtifactCorrupt: it is damaged.
        AnotherModel: it is not one of this model; the line says what differs.
        BackendUnavailable: llama-cpp-python or its converter is not installed.
        ConfigError: there is no file, or there are several.
        IncompatibleTrial: the converter refuses the model, or what lies where cannot be told.
    """
    from safetensors.torch import save_file

    from qsweep.formats.gguf.dense import ORDERS_FILE
    from qsweep.formats.gguf.rules import to_json
    from qsweep.quantizers.conversion.artifact import require_converter
    from qsweep.quantizers.conversion.base import unquantized

    file = read_gguf(find_file(path))
    if is_partial(model.path):
        return _artifact(file, out, None, {}, runs=True)
    require_converter(model.facts)
    with unquantized(model, out) as base:
        if base.unexplained is not None:
            raise UnknownLayout(
                f"{path}: of {model.facts.name}, {base.unexplained}, so nobody knows where this file "
                "has it"
            )
        found = compare(base, file)
        if found.problem is not None:
            raise AnotherModel(
                f"{path}: is no GGUF file of {model.facts.name}: {found.problem}; check model="
            )
        if base.layout.orders:
            save_file(dict(base.layout.orders), out / ORDERS_FILE)
        rules = to_json(base.layout, base.checkpoint.infos)
    agreement = base.agreement
    if found.settings:
        agreement = {"agrees": False, "reason": f"in its metadata, {'; '.join(found.settings)}"}
    details = {
        "llama_cpp": agreement,
        "weight_errors": {name: float(f"{e:.3g}") for name, e in found.errors.items()},
        **({"unlike_ours": list(found.notes)} if found.notes else {}),
    }
    return _artifact(file, out, rules, details, runs=bool(agreement["agrees"]))


def _artifact(
    file: "GGUFFile",
    out: Path,
    rules: dict[str, Any] | None,
    details: dict[str, Any],
    *,
    runs: bool,
) -> "Artifact":
    from qsweep.formats.artifact import Artifact
    from qsweep.formats.gguf.facts import read_gguf_facts
    from qsweep.formats.gguf.stored import stored_size, stored_tensors
    from qsweep.quantizers.conversion.artifact import serving

    facts, tensors = read_gguf_facts(file), stored_tensors(file)
    return Artifact(
        path=out,
        format="gguf",
        size=stored_size(file, tensors),
        runtimes=serving({tensor.type for tensor in tensors}, agrees=runs),
        details={
            "type": facts.file_type,
            **_types(tensors),
            "tensors": rules,
            "made_by": facts.content(),
            **details,
        },
        origin=file.path,
    )


def _types(tensors: Any) -> dict[str, Any]:
    from collections import Counter

    linear = Counter(t.type for t in tensors if t.linear and t.weights)
    rest = Counter(t.type for t in tensors if not t.linear and t.quantized)
    return {"tensor_types": dict(linear.most_common()), "other_tensor_types": dict(rest)}


def _unknown(own: "GGUFFile", fitted: Fitted) -> str | None:
    """A tensor that llama.cpp would compute with and no tensor of the checkpoint is."""
    used = {t for rule in fitted.layout.rules.values() for t in rule.tensors}
    for name in fitted.file.tensors:
        if name not in used and name not in own.tensors and not is_extra(name, fitted):
            return f"it has a tensor {printable(name)} that the model has not"
    return None


def _misshapen(base: "UnquantizedFile", fitted: Fitted) -> str | None:
    for name, rule in fitted.layout.rules.items():
        info = base.checkpoint.infos.get(name)
        if info is None or rule.blocks is not None:
            continue
        shape = fitted.file.tensors[rule.tensor].shape
        stacked = rule.slice is not None and len(shape) > len(info.shape)
        own = shape[1:] if stacked else shape
        if rule.tensor in (EMBEDDING, HEAD) and own[1:] == info.shape[1:]:
            continue
        beyond = stacked and (rule.slice or 0) >= shape[0]
        if math.prod(own) != math.prod(info.shape) or beyond:
            return f"{rule.tensor} has the shape {shape}, where the model's {name} is {info.shape}"
        plain = rule.rows is None and rule.shape is None and not rule.transpose
        if plain and len(own) == len(info.shape) and own != info.shape:
            return f"{rule.tensor} has the shape {shape}, where the model's {name} is {info.shape}"
    return None


def _pair(
    base: "UnquantizedFile", fitted: Fitted, name: str
) -> "tuple[torch.Tensor, torch.Tensor]":
    """The checkpoint's tensor and the file's in its place, float32 of one shape, flat in rows."""
    from qsweep.formats.gguf.dense import weight_of

    known = name
    if name not in base.checkpoint.infos:  # a tied head that is stored once more
        known = next(n for n, r in base.layout.rules.items() if r.tensor == EMBEDDING)
    source = base.checkpoint.tensor(known).float()
    found = weight_of(name, fitted.layout, fitted.file, tuple(source.shape))
    rows = min(len(source), len(found)) if source.ndim else 1
    return (source[:rows], found[:rows]) if source.ndim else (source, found.reshape(source.shape))


def _error(source: "torch.Tensor", found: "torch.Tensor") -> float:
    size = float(source.norm())
    return float((found - source).norm()) / size if size else float(found.norm())


def _cosine(source: "torch.Tensor", found: "torch.Tensor") -> float:
    return float((source * found).sum() / (source.norm() * found.norm()).clamp_min(1e-30))


def _equal(source: "torch.Tensor", found: "torch.Tensor", fitted: Fitted, name: str) -> bool:
    rule = fitted.layout.rules[name]
    types = [fitted.file.tensors[t].type.name for t in rule.tensors]
    share = max(_ROUNDING.get(t, 0.0) for t in (*types, *_rounded(fitted, name)))
    least = max(_SMALLEST.get(t, 0.0) for t in types)
    # Numbers that went through a function are as exact as its result was.
    size = source.abs() + abs(rule.add) + (1.0 if rule.exp else 0.0)
    return bool(((found - source).abs() <= share * size + least).all())


def _rounded(fitted: Fitted, name: str) -> Iterator[str]:
    """The type that the checkpoint itself was rounded to: the file may be of its unrounded weights."""
    if (info := fitted.checkpoint.infos.get(name)) is not None:
        yield info.dtype


def _changed(base: "UnquantizedFile", fitted: Fitted, changed: list[str], unquantized: int) -> str:
    """In one line what a file was made from whose unquantized tensors are not the model's."""
    name = changed[0]
    place = fitted.layout.rules[name].tensor
    matrices = [n for n, info in base.checkpoint.infos.items() if len(info.shape) > 1]
    ruled = [n for n in matrices if n in fitted.layout.rules and n not in changed] or [name]
    # What lies in the middle of the model; its first and last tensors are the least typical.
    source, found = _pair(base, fitted, ruled[len(ruled) // 2])
    related = _cosine(source, found) > _FAMILY
    what = "another fine-tune or revision of this model" if related else "another model"
    return (
        f"{len(changed)} of its {unquantized} unquantized tensors are not the model's "
        f"({place} is not {name}), so it was made from {what}"
    )


def _mismatch(
    name: str, tensor: str, type_: "TensorType", source: "torch.Tensor", found: "torch.Tensor"
) -> str | None:
    """Why a quantized tensor is no rounding of the checkpoint's, in one line; None if it is one."""
    if not bool(found.isfinite().all()):
        return f"{tensor} holds numbers that are not finite"
    bits = 8 * type_.size / type_.block
    error, cosine = _error(source, found), _cosine(source, found)
    largest = next((limit for least, limit in _LARGEST_ERRORS if bits >= least), None)
    if cosine >= _LEAST_COSINE and (largest is None or error <= largest):
        return None
    if cosine < _FAMILY and _same_rows(source, found):
        return f"{tensor} does not resemble {name}: its rows are in another order"
    if cosine < _FAMILY:
        return f"{tensor} does not resemble {name}: these are other weights"
    return (
        f"{tensor} is off {name} by {error:.0%}, and {type_.name} rounds by {largest:.0%} at most: "
        "it was made from another fine-tune or revision of this model"
    )


def _same_rows(source: "torch.Tensor", found: "torch.Tensor") -> bool:
    """Whether some rows of a tensor are all to be found in another one, wherever."""
    import torch

    if source.ndim < 2:
        return False
    ours = torch.nn.functional.normalize(source.reshape(-1, source.shape[-1]), dim=-1)
    rows = torch.nn.functional.normalize(found.reshape(-1, found.shape[-1]), dim=-1)
    probed = rows[:: max(1, len(rows) // _PROBED_ROWS)][:_PROBED_ROWS]
    return bool(((probed @ ours.T).amax(1) > _ALIKE).all())
