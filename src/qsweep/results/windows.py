"""What measurements say of each of their windows, and two of them compared on those that both read."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from qsweep.evaluate.draws import Draws, difference
from qsweep.evaluate.intervals import CONFIDENCE, is_sequential
from qsweep.evaluate.metrics import Ratio, exponential
from qsweep.results.arrays import FindArrays, read_arrays, stamp, stored_arrays
from qsweep.results.record import Measurement, Record, Row
from qsweep.results.traits import drawn_by

if TYPE_CHECKING:
    import numpy as np

Of = Literal["nll", "kld", "top1"]
_SUMS: tuple[Of, ...] = ("nll", "kld", "top1")


@dataclass(frozen=True, eq=False)
class Windows:
    """Sums over the tokens of each window that was read, of each draw: float64 [draws, windows].

    Attributes:
        nll: Of the negative log-likelihood, in nats.
        tokens: How many tokens were scored, [windows].
        kld: Of the divergence, in nats; None where none was measured.
        top1: How many of the reference's first tokens were the model's, too; None without it.
        number: Where each stands in its text, [windows]; None: all of the text, in its order.
        sequential: Whether how many were read was decided by looking at them.
        seeds: Of the draws, a single one's, too; none of what rests on no draw.
    """

    nll: "np.ndarray"
    tokens: "np.ndarray"
    kld: "np.ndarray | None" = None
    top1: "np.ndarray | None" = None
    number: "np.ndarray | None" = None
    sequential: bool = False
    seeds: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def places(self) -> "np.ndarray":
        """Where each stands in its text."""
        import numpy as np

        return np.arange(len(self)) if self.number is None else self.number

    def draws(self, of: Of) -> Draws:
        """One of the three, as draws to compare; there must be such."""
        sums = getattr(self, of)
        assert sums is not None
        return Draws(sums, self.seeds)

    def at(self, numbers: "np.ndarray") -> "Windows":
        """Those of the text's windows with these numbers, all of which were read."""
        import numpy as np

        order = np.argsort(self.places)
        where = order[np.searchsorted(self.places, numbers, sorter=order)]
        kld, top1 = (None if one is None else one[:, where] for one in (self.kld, self.top1))
        nll, tokens = self.nll[:, where], self.tokens[where]
        return replace(self, nll=nll, tokens=tokens, kld=kld, top1=top1, number=numbers)


class Difference(NamedTuple):
    """A mean per token with the ends of its interval."""

    value: float
    low: float
    high: float


FindWindows = Callable[[Row], Windows | None]


def windows_of(row: Row, find: FindArrays = stored_arrays) -> Windows | None:
    """What a row's measurement says of its windows; None where arrays of it are gone."""
    if row.measurement is None:
        return None
    if not row.record.draws:
        return _windows(row.record, row.measurement, find)
    place = row.measurement.place
    drawn = [(one, m) for one in row.record.draws for m in one.measurements if m.place == place]
    found = [_windows(record, measurement, find) for record, measurement in drawn]
    return _stacked(found, tuple(drawn_by(record) for record, _ in drawn))


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


def paired_ratio(one: Windows, other: Windows, confidence: float = CONFIDENCE) -> Ratio:
    """The perplexity of one through the other's, on the same windows (:func:`shared`)."""
    log = _difference(one, other, "nll", confidence)
    return Ratio(exponential(log.value), exponential(log.low), exponential(log.high))


def kld_difference(
    one: Windows, other: Windows, confidence: float = CONFIDENCE
) -> Difference | None:
    """The divergence of one less the other's, in nats, on the same windows, at least two.

    None where one of them has none, or so few windows have no interval.
    """
    if one.kld is None or other.kld is None:
        return None
    found = _difference(one, other, "kld", confidence)
    return None if math.isinf(found.high) else found


def _difference(one: Windows, other: Windows, of: Of, confidence: float) -> Difference:
    found = difference(one.draws(of), other.draws(of), one.tokens)
    half = found.half(confidence, sequential=one.sequential or other.sequential)
    return Difference(found.value, found.value - half, found.value + half)


@dataclass(frozen=True, eq=False)
class LaidOut:
    """Windows of several models by their places in one text.

    Attributes:
        models: Sums of ``by`` over all of the text's windows, 0 where one was not read.
        by: ``kld``, or ``nll`` where one of them has no divergence.
        tokens: Of each window of the text, [windows].
        read: Which windows each has read, bool [models, windows].
        sequential: Of which how many were read was decided by looking at them, bool [models].
    """

    models: list[Draws]
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
    models, read = [], np.zeros((len(kept), len(tokens)), bool)
    for number, (_, its) in enumerate(kept):
        own = its.draws(by)
        sums = np.zeros((len(own.sums), len(tokens)))
        sums[:, its.places], read[number, its.places] = own.sums, True
        models.append(replace(own, sums=sums))
    sequential = np.array([its.sequential for _, its in kept], bool)
    return [row for row, _ in kept], LaidOut(models, by, tokens, read, sequential)


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


def _stacked(found: Sequence[Windows | None], seeds: tuple[tuple[int, ...], ...]) -> Windows | None:
    """Several draws as one; None where they are not all there, or not of the same windows."""
    import numpy as np

    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    if any(one.number is not None or shared(one, known[0]) is None for one in known):
        return None

    def together(of: Of) -> Any:
        values = [value for one in known if (value := getattr(one, of)) is not None]
        return np.concatenate(values) if len(values) == len(known) else None

    return replace(known[0], **{of: together(of) for of in _SUMS}, seeds=seeds)


def _windows(record: Record, measurement: Measurement, find: FindArrays) -> Windows | None:
    if (path := find(record, measurement)) is None:
        return None
    if (found := _read(path, stamp(path))) is None:
        return None
    seeds = (drawn,) if (drawn := drawn_by(record)) else ()
    return replace(found, sequential=is_sequential(measurement.facts), seeds=seeds)


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
        return np.add.reduceat(values.astype(np.float64), starts)[None]

    number = arrays.get("window_number")
    return Windows(nll[None], tokens, sums("token_kld"), sums("token_top1"), number)
