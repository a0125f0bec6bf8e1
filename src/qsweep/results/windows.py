"""What measurements say of each of their windows, and two of them compared on those that both read."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from qsweep.evaluate.intervals import CONFIDENCE, half_width, is_sequential
from qsweep.evaluate.metrics import Ratio, clustered_mean, ppl_ratio
from qsweep.results.arrays import FindArrays, read_arrays, stamp, stored_arrays
from qsweep.results.record import Row

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Windows:
    """Sums over the tokens of each window that was read: float64 [windows] each.

    Attributes:
        nll: Of the negative log-likelihood, in nats.
        tokens: How many tokens were scored.
        kld: Of the divergence, in nats; None where none was measured.
        top1: How many of the reference's first tokens were the model's, too; None without it.
        number: Where each stands in its text; None: all of the text, in its order.
        sequential: Whether how many were read was decided by looking at them.
    """

    nll: "np.ndarray"
    tokens: "np.ndarray"
    kld: "np.ndarray | None" = None
    top1: "np.ndarray | None" = None
    number: "np.ndarray | None" = None
    sequential: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def places(self) -> "np.ndarray":
        """Where each stands in its text."""
        import numpy as np

        return np.arange(len(self)) if self.number is None else self.number

    def at(self, numbers: "np.ndarray") -> "Windows":
        """Those of the text's windows with these numbers, all of which were read."""
        import numpy as np

        order = np.argsort(self.places)
        where = order[np.searchsorted(self.places, numbers, sorter=order)]
        kld, top1 = (None if one is None else one[where] for one in (self.kld, self.top1))
        return Windows(self.nll[where], self.tokens[where], kld, top1, numbers, self.sequential)


class Difference(NamedTuple):
    """A mean per token with the ends of its interval."""

    value: float
    low: float
    high: float


FindWindows = Callable[[Row], Windows | None]


def windows_of(row: Row, find: FindArrays = stored_arrays) -> Windows | None:
    """What a row's measurement says of its windows; None where its arrays are gone."""
    if row.measurement is None or (path := find(row.record, row.measurement)) is None:
        return None
    found = _read(path, stamp(path))
    sequential = is_sequential(row.measurement.facts)
    return found if found is None or not sequential else replace(found, sequential=True)


def shared(one: Windows, other: Windows) -> tuple[Windows, Windows] | None:
    """Both on the windows that both read; None where these are not the same, or none."""
    import numpy as np

    if one.number is None and other.number is None:
        pair = one, other
        if len(one) != len(other):
            return None
    else:
        common = np.intersect1d(one.places, other.places)
        pair = one.at(common), other.at(common)
    return pair if len(pair[0]) and bool((pair[0].tokens == pair[1].tokens).all()) else None


def paired_ratio(one: Windows, other: Windows) -> Ratio:
    """The perplexity of one through the other's, on the same windows (:func:`shared`)."""
    sequential = one.sequential or other.sequential
    return ppl_ratio(one.nll, other.nll, one.tokens, sequential=sequential)


def kld_difference(
    one: Windows, other: Windows, confidence: float = CONFIDENCE
) -> Difference | None:
    """The divergence of one less the other's, in nats, on the same windows, at least two.

    None where one of them has none, or so few windows have no interval.
    """
    if one.kld is None or other.kld is None:
        return None
    mean = clustered_mean(one.kld - other.kld, one.tokens)
    half = half_width(
        mean.stderr or 0.0,
        len(one),
        sequential=one.sequential or other.sequential,
        confidence=confidence,
    )
    return (
        None if math.isinf(half) else Difference(mean.value, mean.value - half, mean.value + half)
    )


@dataclass(frozen=True, eq=False)
class LaidOut:
    """Windows of several models by their places in one text.

    Attributes:
        sums: Of ``by``, 0 where a window was not read: float64 [models, windows].
        by: ``kld``, or ``nll`` where one of them has no divergence.
        tokens: Of each window of the text, [windows].
        read: Which windows each has read, bool [models, windows].
        sequential: Of which how many were read was decided by looking at them, bool [models].
    """

    sums: "np.ndarray"
    by: Literal["kld", "nll"]
    tokens: "np.ndarray"
    read: "np.ndarray"
    sequential: "np.ndarray"


def laid_out(measured: Sequence[tuple[Row, Windows]]) -> tuple[list[Row], LaidOut]:
    """Rows with their windows side by side; those of other windows than the first's are left out."""
    import numpy as np

    tokens = np.zeros(max((_end(its) for _, its in measured), default=0))
    whole: int | None = None
    kept: list[tuple[Row, Windows]] = []
    for row, its in measured:
        known = tokens[its.places]
        if ((known > 0) & (known != its.tokens)).any():
            continue
        if its.number is None and len(its) != (whole := whole or len(its)):
            continue
        tokens[its.places] = its.tokens
        kept.append((row, its))
    by: Literal["kld", "nll"] = "kld" if all(its.kld is not None for _, its in kept) else "nll"
    sums, read = np.zeros((len(kept), len(tokens))), np.zeros((len(kept), len(tokens)), bool)
    for model, (_, its) in enumerate(kept):
        sums[model, its.places], read[model, its.places] = getattr(its, by), True
    sequential = np.array([its.sequential for _, its in kept], bool)
    return [row for row, _ in kept], LaidOut(sums, by, tokens, read, sequential)


def read_until(rows: Iterable[Row]) -> list[str]:
    """What is to be said of rows that read windows until an interval was narrow enough."""
    found = [row for row in rows if row.measurement and is_sequential(row.measurement.facts)]
    if not found:
        return []
    rules = [row.measurement.facts["until"] for row in found if row.measurement]
    wide = sum(not rule["reached"] for rule in rules)
    names = ", ".join(dict.fromkeys(str(rule["rule"]) for rule in rules))
    some = "1 trial" if len(found) == 1 else f"{len(found)} trials"
    missed = f"; of {wide} the whole text did not make it so" if wide else ""
    return [
        f"{some} read windows, in a random order, until {names}: intervals hold wherever one stops "
        f"(a confidence sequence), and two are compared on the windows that both read{missed}"
    ]


def _end(its: Windows) -> int:
    return int(its.places.max()) + 1 if len(its) else 0


@lru_cache(maxsize=8192)
def _read(path: Path, stamp: tuple[int, ...]) -> Windows | None:
    import numpy as np

    names = ("window_nll", "window_tokens", "window_number", "token_kld", "token_top1")
    arrays = read_arrays(path, *names)
    if arrays is None or not {"window_nll", "window_tokens"} <= set(arrays):
        return None
    nll, tokens = (arrays[name].astype(np.float64) for name in ("window_nll", "window_tokens"))

    def sums(name: str) -> "np.ndarray | None":
        values = arrays.get(name)
        if values is None or len(values) != int(tokens.sum()) or not (tokens > 0).all():
            return None
        starts = np.concatenate([[0], np.cumsum(tokens)[:-1]]).astype(np.int64)
        return np.add.reduceat(values.astype(np.float64), starts)

    return Windows(nll, tokens, sums("token_kld"), sums("token_top1"), arrays.get("window_number"))
