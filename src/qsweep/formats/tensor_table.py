"""A table of an artifact's tensors: how each is stored, and how far it is from the base's. Pure.

Errors are those of the weights themselves, in float32: ‖Ŵ - W‖ / ‖W‖ (Frobenius norms) and the
largest |ŵ - w|. They say where an artifact differs, and not what that does to its text.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields

from qsweep.base.errors import ArtifactCorrupt

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.)")
_EMBEDDING = re.compile(r"(^|\.)(embed\w*|wte|wpe|token_embd|tok_embeddings|word_embeddings)(\.|$)")


@dataclass(frozen=True)
class TensorRow:
    """One tensor of the model.

    Attributes:
        name: As the base's checkpoint calls it.
        type: What it is stored as, in the format's own words; several joined by ``+``.
        bpw: Stored bits per weight.
        weights: How many it has.
        share: Of all stored bits.
        quantized: Whether it is codes rather than numbers.
        linear: Whether it is a matrix of a linear layer inside the decoder, an expert's included.
        relative_error: ‖Ŵ - W‖ / ‖W‖; None where the base has no such tensor, or nothing but zeros.
        max_error: The largest |ŵ - w|.
        constant: Of its matrices, those all of whose weights are one number while the base's differ.
        changed: Of one that is stored as numbers: how far it is from the base's beyond rounding to a
            type of 16 bits, as its relative error; 0 where it is the base's. None of one in codes.
    """

    name: str
    type: str
    bpw: float
    weights: int
    share: float
    quantized: bool
    linear: bool
    relative_error: float | None
    max_error: float | None
    constant: int
    changed: float | None

    @property
    def bits(self) -> float:
        """All bits stored for it."""
        return self.bpw * self.weights

    @property
    def layer(self) -> int | None:
        """The decoder layer that it is in; None where it is in none."""
        return place_of(self.name)[0]

    @property
    def kind(self) -> str:
        """What tensors of the same place in all layers share: ``mlp.experts.up_proj``."""
        return place_of(self.name)[1]


def place_of(name: str) -> tuple[int | None, str]:
    """A tensor's layer, and what it is there; an expert's number and ``.weight`` are left out.

    >>> place_of("model.layers.7.mlp.experts.12.up_proj.weight")
    (7, 'mlp.experts.up_proj')
    >>> place_of("lm_head.weight")
    (None, 'lm_head')
    """
    found = _NUMBER.search(name)
    kind = name if found is None else name[found.end() + 1 :]
    kind = re.sub(r"(^|\.)\d+(?=\.|$)", "", kind.removesuffix(".weight")).lstrip(".")
    return (None if found is None else int(found.group(1))), kind


def in_order(rows: Iterable[TensorRow]) -> list[TensorRow]:
    """Embeddings first, then layer by layer, then what follows them; experts by their numbers."""
    return sorted(rows, key=_place)


def _place(row: TensorRow) -> tuple[object, ...]:
    layer = row.layer
    part = 1 if layer is not None else 0 if _EMBEDDING.search(row.name) else 2
    numbers = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in row.name.split(".")]
    return (part, -1 if layer is None else layer, numbers)


COLUMNS = tuple(field.name for field in fields(TensorRow))


def to_csv(rows: Sequence[TensorRow]) -> str:
    """The table as CSV, with a header, numbers in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(value) for value in astuple(row)] for row in rows)
    return out.getvalue()


def from_csv(text: str, where: object = "tensors.csv") -> list[TensorRow]:
    """The inverse of :func:`to_csv`. Raises ArtifactCorrupt, which says ``where``."""
    lines = csv.reader(io.StringIO(text))
    try:
        if tuple(next(lines, ())) != COLUMNS:
            raise ValueError("other columns")
        return [_row(line) for line in lines]
    except (ValueError, TypeError, csv.Error) as error:
        raise ArtifactCorrupt(f"{where}: not a table of tensors ({error})") from error


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "" if value is None else value if isinstance(value, str) else repr(value)
    # A spreadsheet would run what begins like a formula; a tensor's name is another's text.
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _row(line: Sequence[str]) -> TensorRow:
    name, type_, bpw, weights, share, quantized, linear, relative, largest, constant, changed = line
    return TensorRow(
        name=name.removeprefix("'"),
        type=type_.removeprefix("'"),
        bpw=float(bpw),
        weights=int(weights),
        share=float(share),
        quantized=quantized == "true",
        linear=linear == "true",
        relative_error=float(relative) if relative else None,
        max_error=float(largest) if largest else None,
        constant=int(constant),
        changed=float(changed) if changed else None,
    )
