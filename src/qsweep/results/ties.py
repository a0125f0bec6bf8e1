"""Which rows can be told apart: every pair that was measured on the same windows, compared on them.

A rank is claimed where each pair's own differences bear it (:mod:`qsweep.evaluate.pairs`), by KL
divergence, or by perplexity where a row has no divergence. In the *silent zone*, close to the
reference, neither says which of two does better at tasks (:data:`~qsweep.evaluate.verdicts.SILENT_KLD`),
so that there no pair is ever ordered by them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

from qsweep.base.contents import is_number
from qsweep.evaluate.pairs import compare_pairs, rank_ranges
from qsweep.results import covered
from qsweep.results.arrays import FindArrays, stored_arrays
from qsweep.results.columns.table import KLD
from qsweep.results.comparable import families
from qsweep.results.record import Record, Row
from qsweep.results.standing import Standing
from qsweep.results.windows import FindWindows, laid_out, read_until, windows_of
from qsweep.results.winner import MIN_WINDOWS

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Ties:
    """What may be said of every two rows of one family.

    Attributes:
        standings: By the keys of trials, all claims together at 5 %.
        apart: Pairs of keys that can be told apart, each pair for itself at 5 %: among many trials
            few windows tell hardly any pair apart by all claims together, and then all would be
            as good as the best.
    """

    standings: dict[str, Standing]
    apart: frozenset[frozenset[str]]

    def tell(self, one: str, other: str) -> bool | None:
        """Whether two trials can be told apart; None where nothing is known of one of them."""
        if one not in self.standings or other not in self.standings:
            return None
        return frozenset((one, other)) in self.apart


NOTHING = Ties({}, frozenset())


def ties(rows: Sequence[Row], windows: FindWindows = windows_of) -> Ties:
    """What may be said of rows that were all measured alike; those without windows are left out."""
    # A trial that is in several sweeps is no rival of itself.
    once = {row.key: row for row in rows}.values()
    measured = [(row, its) for row in once if (its := windows(row)) is not None]
    found = [(row, its) for row, its in measured if len(its) >= MIN_WINDOWS]
    kept, laid = laid_out(found)
    if len(kept) < 2:
        return NOTHING
    silent = [is_silent(row) for row in kept]
    tests = compare_pairs(
        laid.models,
        laid.tokens,
        _both(silent),
        read=laid.read,
        sequential=laid.sequential,
        least=MIN_WINDOWS,
    )
    better, alone = tests.better(), tests.better(each_alone=True)
    standings = {
        row.key: Standing(rank.first, rank.last, len(kept), laid.by, quiet)
        for row, rank, quiet in zip(kept, rank_ranges(better), silent, strict=True)
    }
    pairs = combinations(range(len(kept)), 2)
    apart = {frozenset((kept[a].key, kept[b].key)) for a, b in pairs if alone[a, b] or alone[b, a]}
    return Ties(standings, frozenset(apart))


def with_standings(rows: Sequence[Row], find: FindArrays = stored_arrays) -> list[Row]:
    """Rows, each with where it may stand among those of its model that were measured as it was.

    Args:
        rows: Of one or several models, corpora and presets.
        find: Tells where a measurement's arrays are.
    """
    standings = {
        id(row): found.standings.get(row.key)
        for family in families(filter(may_be_ranked, rows))
        for found in [ties(family, partial(windows_of, find=find))]
        for row in family
    }
    return [replace(row, standing=standings.get(id(row))) for row in rows]


def tell_of(records: Iterable[Record]) -> Callable[[str, str], bool | None]:
    """Tells by their keys whether two trials can be told apart, by their primary measurements."""
    rows = [Row(record, record.primary) for record in records if record.finished]
    found = [ties(family) for family in families(filter(may_be_ranked, rows))]

    def tell(one: str, other: str) -> bool | None:
        return next((known for its in found if (known := its.tell(one, other)) is not None), None)

    return tell


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know: of which rows nothing ranks them, and what ranks and intervals cover."""
    ranked = [row for row in rows if row.standing is not None]
    if not ranked:
        return [*read_until(rows), *covered.notes(rows)]
    by = "perplexity" if any(s.by == "nll" for row in ranked if (s := row.standing)) else "KLD"
    said = [
        *read_until(rows),
        f"ranks are by {by}, each pair compared on its own windows (5 % over all pairs, Holm): a "
        "range is a tie",
    ]
    if silent := [row for row in ranked if row.standing is not None and row.standing.silent]:
        bounds = ", ".join(sorted({f"{row.record.silent_kld:g}" for row in silent}))
        number = len({row.key for row in silent})
        count = "1 trial has" if number == 1 else f"{number} trials have"
        said.append(
            f"{count} a KLD below {bounds} nats, where neither KLD nor perplexity says what does better "
            "at tasks (arXiv 2606.19558): the smallest of these is the first; silent_kld=0 ranks all"
        )
    return [*said, *covered.notes(rows)]


def may_be_ranked(row: Row) -> bool:
    """Whether a row is a quantized model's that was asked for, with a reference to be ranked by."""
    return not (row.record.reference or row.record.implied or row.no_verdict)


def is_silent(row: Row) -> bool:
    """Whether a row lies in the silent zone, where divergence and perplexity rank nothing."""
    kld = KLD.get(row)
    return is_number(kld) and kld < row.record.silent_kld


def _both(silent: Sequence[bool]) -> "np.ndarray":
    import numpy as np

    return np.logical_and.outer(silent, silent)
