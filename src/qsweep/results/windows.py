"""What a row's measurement says of each of its windows, and of each draw where there are several."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from qsweep.evaluate.draws import Draws
from qsweep.results.arrays import FindArrays, read_arrays, stamp, stored_arrays
from qsweep.results.record import Measurement, Record, Row
from qsweep.results.traits import seed_of

if TYPE_CHECKING:
    import numpy as np


class Windows(NamedTuple):
    """What a measurement says of each of its windows, summed over its tokens: float64 each.

    ``nll`` and ``kld`` are [draws, windows], ``tokens`` is [windows]; ``kld`` is None where no
    divergence was measured. ``seeds`` are those of the draws, none where there is one figure.
    """

    nll: "np.ndarray"
    tokens: "np.ndarray"
    kld: "np.ndarray | None"
    seeds: tuple[int, ...] = ()

    def draws(self, of: Literal["nll", "kld"]) -> Draws:
        """Either of the two, as draws to compare; there must be one."""
        sums = self.nll if of == "nll" else self.kld
        assert sums is not None
        return Draws(sums, self.seeds)

    def same_tokens(self, other: "Windows") -> bool:
        """Whether both are of the same windows, as far as their tokens' numbers tell."""
        same = len(self.tokens) == len(other.tokens)
        return same and bool((self.tokens == other.tokens).all())


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
    return _stacked(found, tuple(seed_of(record) or 0 for record, _ in drawn))


def _stacked(found: list[Windows | None], seeds: tuple[int, ...]) -> Windows | None:
    import numpy as np

    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    if not all(one.same_tokens(known[0]) for one in known):
        return None
    klds = [one.kld for one in known if one.kld is not None]
    kld = np.concatenate(klds) if len(klds) == len(known) else None
    return Windows(np.concatenate([one.nll for one in known]), known[0].tokens, kld, seeds)


def _windows(record: Record, measurement: Measurement, find: FindArrays) -> Windows | None:
    path = find(record, measurement)
    return None if path is None else _read(path, stamp(path))


@lru_cache(maxsize=8192)
def _read(path: Path, stamp: tuple[int, ...]) -> Windows | None:
    import numpy as np

    arrays = read_arrays(path, "window_nll", "window_tokens", "token_kld")
    if arrays is None or not {"window_nll", "window_tokens"} <= set(arrays):
        return None
    nll, tokens = (arrays[name].astype(np.float64) for name in ("window_nll", "window_tokens"))
    kld = arrays.get("token_kld")
    if kld is None or len(kld) != int(tokens.sum()) or not (tokens > 0).all():
        return Windows(nll[None], tokens, None)
    starts = np.concatenate([[0], np.cumsum(tokens)[:-1]]).astype(np.int64)
    return Windows(nll[None], tokens, np.add.reduceat(kld.astype(np.float64), starts)[None])
