"""From the table of an artifact's tensors to what a record says of it. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from qsweep.formats.tensor_table import TensorRow
from qsweep.models.facts import is_embedding, is_head, is_of_text
from qsweep.models.roles import is_linear_layer, kept_as
from qsweep.results.tensor_flags import Claim, flags_of, notes_of
from qsweep.results.tensor_summary import (
    BesideLayers,
    KindByLayer,
    TensorError,
    TensorSummary,
    TypeShare,
)

_WORST = 8


def summary_of(
    rows: Sequence[TensorRow], claim: Claim, left_out: Sequence[str], file: str | None = None
) -> TensorSummary:
    """A table in short, with what is not as it should be.

    Args:
        rows: The table.
        claim: What is said of the artifact.
        left_out: The base's tensors that it does not have.
        file: Where the whole table lies.
    """
    return TensorSummary(
        types=tuple(_types(rows)),
        worst=tuple(_worst(rows)),
        kinds=tuple(kinds_of(rows)),
        beside=tuple(beside_layers(rows)),
        flags=tuple(flags_of(rows, claim, left_out)),
        notes=tuple(notes_of(rows, claim)),
        file=file,
    )


def _types(rows: Iterable[TensorRow]) -> list[TypeShare]:
    by_type: dict[tuple[str, bool], list[TensorRow]] = defaultdict(list)
    for row in rows:
        by_type[row.type, row.quantized].append(row)
    found = [
        TypeShare(
            type=type_,
            tensors=len(alike),
            weights=sum(row.weights for row in alike),
            bpw=_digits(bits_per_weight(alike)),
            share=_digits(sum(row.share for row in alike)),
            quantized=quantized,
            relative_error=_mean_error(alike),
        )
        for (type_, quantized), alike in by_type.items()
    ]
    return sorted(found, key=lambda one: (-one.share, one.type))


def _worst(rows: Iterable[TensorRow]) -> list[TensorError]:
    known = [row for row in rows if row.relative_error]
    known.sort(key=lambda row: -(row.relative_error or 0))
    return [
        TensorError(
            name=row.name,
            type=row.type,
            bpw=_digits(row.bpw),
            relative_error=_digits(row.relative_error or 0),
            max_error=_digits(row.max_error or 0),
        )
        for row in known[:_WORST]
    ]


def kinds_of(rows: Iterable[TensorRow]) -> list[KindByLayer]:
    """The linear layers of the decoder by their place in it, the experts of a layer together.

    Routers and the like, which stay in 16 bits unless somebody asks, are there where they are codes.
    """
    by_kind: dict[str, dict[int, list[TensorRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.layer is not None and (row.linear or _is_quantized_router(row)):
            by_kind[row.kind][row.layer].append(row)
    return [
        KindByLayer(
            kind=kind,
            layers=tuple(layers),
            types=tuple("+".join(sorted({row.type for row in alike})) for alike in layers.values()),
            bpw=tuple(_digits(bits_per_weight(alike)) for alike in layers.values()),
            errors=tuple(_mean_error(alike) for alike in layers.values()),
            weights=tuple(sum(row.weights for row in alike) for alike in layers.values()),
        )
        for kind, layers in sorted(by_kind.items())
    ]


def _is_quantized_router(row: TensorRow) -> bool:
    kind = row.kind
    return (
        row.quantized
        and is_linear_layer(kind)
        and kept_as(kind) is not None
        and is_of_text(row.name)
    )


def beside_layers(rows: Iterable[TensorRow]) -> list[BesideLayers]:
    """The embedding of tokens and the output head, those that are stored."""
    return [
        BesideLayers(kind=row.kind, type=row.type, bpw=_digits(row.bpw), weights=row.weights)
        for row in rows
        if row.layer is None and (is_embedding(row.name) or is_head(row.name))
    ]


def bits_per_weight(rows: Iterable[TensorRow]) -> float:
    """Stored bits per weight of all of them together."""
    rows = list(rows)
    return sum(row.bits for row in rows) / max(sum(row.weights for row in rows), 1)


def _mean_error(rows: Iterable[TensorRow]) -> float | None:
    known = [(row.relative_error**2, row.weights) for row in rows if row.relative_error is not None]
    weights = sum(count for _, count in known)
    if not weights:
        return None
    return _digits(math.sqrt(sum(square * count for square, count in known) / weights))


def _digits(value: float) -> float:
    # Four digits are more than a picture or a line shows, and a record is written for every trial.
    return float(f"{value:.4g}")
