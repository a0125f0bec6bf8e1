"""What is not as it should be in an artifact's tensors, a line each: what, where, what it means. Pure."""

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qsweep.formats.tensor_table import TensorRow, place_of

# More of the linear weights than this in 16 bits or more is not what a name of few bits says.
_UNQUANTIZED = 0.05
# Counted bits may be so far above or below those that a name says: scales take some, and mixes such
# as Q2_K (3.35 bits per weight) keep some tensors in more.
_MORE = (1.5, 0.75)
_FEWER = 0.8
# Scales that are folded into norms change them by more than this, in more than half of the layers.
_FOLDED = 0.005
# A layer this many robust standard deviations beyond its peers, and this much worse, is an outlier.
_Z, _FACTOR, _PEERS = 6.0, 1.5, 6
# Names that a line lists before it counts.
_NAMED = 3
# What folds scales into norms or the layers before, by the names that methods have.
_FOLDING = re.compile(r"awq|smooth|rotat|quarot|spinquant", re.IGNORECASE)
_BITS = re.compile(
    r"(?:^|[^a-z0-9])(?:I?Q|TQ)(\d)(?:_|$|[^0-9a-z])|(?:int|fp|nf|mxfp|nvfp)[-_]?(\d)(?![0-9])"
    r"|(?:^|[^a-z0-9])(\d)[-_]?bits?(?![a-z])|(?:^|[^a-z0-9])w(\d)a\d+",
    re.IGNORECASE,
)
_HEADS = ("lm_head", "output", "embed_out")


@dataclass(frozen=True)
class Claim:
    """What is said of an artifact.

    Attributes:
        bits: How many bits its linear layers are said to have; None where nothing says so.
        said_by: Who says so: ``bits``, ``type``, or the name of a file.
        method: How it was made, as far as that is known.
    """

    bits: float | None = None
    said_by: str = ""
    method: str = ""


def claim_of(options: Mapping[str, Any], method: str, names: Iterable[str] = ()) -> Claim:
    """What options say of an artifact, else the first of some names that says something.

    >>> claim_of({"type": "Q4_K_M"}, "gguf").bits
    4.0
    >>> claim_of({}, "existing", ["llama-8b.Q5_K_S.gguf"]).bits
    5.0

    With rules for single layers nothing is said of all of them.

    >>> claim_of({"bits": 4, "rules": ["*.o_proj=keep"]}, "gptq").bits
    """
    if options.get("rules"):
        return Claim(method=method)
    bits = options.get("bits")
    if isinstance(bits, int | float) and not isinstance(bits, bool):
        return Claim(float(bits), f"{bits:g} bits", method)
    told = [options.get("type"), options.get("format"), *names]
    for text in filter(None, map(str, filter(None, told))):
        if found := _BITS.search(text):
            return Claim(float(next(filter(None, found.groups()))), text, method)
    return Claim(method=method)


def flags_of(rows: Sequence[TensorRow], claim: Claim, left_out: Sequence[str]) -> Iterator[str]:
    """What is not as it should be."""
    linear = [row for row in rows if row.linear and row.type]
    if claim.bits is not None and claim.bits < 16 and linear:
        yield from _claimed(linear, claim)
    if left_out:
        yield (
            f"{len(left_out)} tensors of the base are not in it ({_names(left_out)}): the base's "
            "own are measured in their place"
        )
    constant = [row for row in rows if row.constant]
    if constant:
        yield (
            f"{len(constant)} tensors hold a single number where the base's differ "
            f"({_names(row.name for row in constant)}): these layers compute nothing"
        )
    changed = [row for row in rows if row.changed]
    if changed and not (_folds(rows) and _FOLDING.search(claim.method)):
        yield _changed(changed, folded=_folds(rows))
    if not _folds(rows):
        yield from _outliers(rows)


def notes_of(rows: Sequence[TensorRow], claim: Claim) -> Iterator[str]:
    """What is worth knowing and nothing wrong."""
    head = next((row for row in rows if row.layer is None and row.kind in _HEADS), None)
    tied = next((row for row in rows if row.layer is None and "embed" in row.name), None)
    if head is not None and head.quantized:
        yield f"Its output head is quantized, too ({head.type}, {head.bpw:.2f} bits per weight)"
    elif head is None and tied is not None and tied.quantized:
        yield (
            "Its output head, which is the embedding, is quantized, too "
            f"({tied.type}, {tied.bpw:.2f} bits per weight)"
        )
    if _folds(rows) and _FOLDING.search(claim.method):
        yield (
            "Scales are folded into its norms and layers: its weights are not meant to be the "
            "base's, and their errors say little"
        )


def _claimed(linear: Sequence[TensorRow], claim: Claim) -> Iterator[str]:
    weights = sum(row.weights for row in linear)
    wide = [row for row in linear if not row.quantized and row.bpw >= 16]
    share = sum(row.weights for row in wide) / weights
    if share > _UNQUANTIZED:
        types = ", ".join(sorted({row.type for row in wide}))
        yield (
            f"claims {claim.said_by}; {100 * share:.0f} % of its linear weights lie in {types} "
            f"({_kinds(wide)}): it is that much larger and nearer to the base than its name says"
        )
        return
    counted = sum(row.bits for row in linear) / weights
    factor, more = _MORE
    if counted > claim.bits * factor + more or counted < claim.bits * _FEWER:  # type: ignore[operator]
        types = ", ".join(dict.fromkeys(row.type for row in sorted(linear, key=lambda r: -r.bits)))
        yield (
            f"claims {claim.said_by}; its linear weights take {counted:.2f} bits each ({types}): "
            "compare it by its size, not by its name"
        )


def _changed(changed: Sequence[TensorRow], *, folded: bool) -> str:
    worst = max(changed, key=lambda row: row.changed or 0)
    by = f"{_percent(worst.changed or 0)} in {worst.name}"
    if folded:
        return (
            f"{len(changed)} tensors that are not quantized differ from the base's, by up to {by}: "
            "scales are folded into its norms, or it is not made from this base; "
            "its weights' errors say little"
        )
    if len(changed) == 1:
        return (
            f"{worst.name} is stored in {worst.type}, not quantized, and differs from the base's by "
            f"{_percent(worst.changed or 0)}: something other than quantizing changed it"
        )
    return (
        f"{len(changed)} tensors that are not quantized differ from the base's "
        f"({_names(row.name for row in changed)}), by up to {by}: something other than quantizing "
        "changed them"
    )


def _folds(rows: Iterable[TensorRow]) -> bool:
    """Whether most layers have a norm that is another than the base's."""
    norms: dict[int, bool] = {}
    for row in rows:
        if row.layer is not None and "norm" in row.kind and not row.quantized:
            norms[row.layer] = norms.get(row.layer, False) or (row.changed or 0) > _FOLDED
    return bool(norms) and sum(norms.values()) > len(norms) / 2


def _outliers(rows: Iterable[TensorRow]) -> Iterator[str]:
    # By the median and the median absolute deviation (times 1.4826, a standard deviation if errors
    # are normal); compared is what is stored alike in the same place.
    peers: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row.quantized and row.relative_error and row.layer is not None:
            peers[row.kind, row.type][row.name] = row.relative_error
    found: list[tuple[float, str, float, float]] = []
    for errors in peers.values():
        middle = statistics.median(errors.values())
        spread = 1.4826 * statistics.median(abs(error - middle) for error in errors.values())
        limit = max(middle + _Z * spread, _FACTOR * middle)
        if len(errors) >= _PEERS:
            found += [(e / middle, name, e, middle) for name, e in errors.items() if e > limit]
    if found:
        _, name, error, middle = max(found)
        more = f", and {len(found) - 1} more are outliers" if len(found) > 1 else ""
        yield (
            f"{name} is {_percent(error)} away from the base's where others of its kind are "
            f"{_percent(middle)}{more}: something went wrong there, or its weights are unusual"
        )


def _kinds(rows: Iterable[TensorRow]) -> str:
    weights: dict[str, int] = defaultdict(int)
    for row in rows:
        weights[place_of(row.name)[1]] += row.weights
    return _names(sorted(weights, key=lambda kind: -weights[kind]))


def _names(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %" if value < 1 else f"{value:.2g} times"
