"""Whether a mix is better than the best uniform artifact of at most its size, beyond noise. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from qsweep.evaluate.draws import difference
from qsweep.evaluate.metrics import CONFIDENCE
from qsweep.results.columns.table import KLD, SIZE_GB
from qsweep.results.record import Row
from qsweep.results.windows import FindWindows
from qsweep.results.winner import MIN_WINDOWS
from qsweep.search.budget.limits import Limit

Word = Literal["better", "tie", "worse", "untested", "alone", "unrivalled", "none", "nothing"]


@dataclass(frozen=True)
class Verdict:
    """What was measured within a budget.

    Attributes:
        limit: The budget.
        mixes: Those within it, the least divergence first.
        uniform: Uniform ones within it, the least divergence first.
        word: How the best mix is to the best uniform one: ``better`` or ``worse`` beyond noise, a
            ``tie``, or ``untested`` where windows do not tell; ``alone`` where no uniform one is small
            enough, ``unrivalled`` where none of those that are was measured; ``none`` where no mix
            was measured, ``nothing`` where nothing was.
        difference: Of their KLD in nats per token, mix less uniform, with its interval.
        unmeasured: Names of uniform candidates within it that were not measured.
    """

    limit: Limit
    mixes: tuple[Row, ...]
    uniform: tuple[Row, ...]
    word: Word
    difference: tuple[float, float | None, float | None] | None = None
    unmeasured: tuple[str, ...] = ()

    @property
    def recommended(self) -> Row | None:
        """What to take: the mix where it is better, or nothing else is there; else the uniform one."""
        if self.word in ("better", "alone"):
            return self.mixes[0]
        return self.uniform[0] if self.uniform else None

    @property
    def share(self) -> float | None:
        """The best mix's KLD as a share of the best uniform one's."""
        if not self.mixes or not self.uniform or not KLD.get(self.uniform[0]):
            return None
        return float(KLD.get(self.mixes[0]) / KLD.get(self.uniform[0]))


def judge(
    limit: Limit,
    mixes: Sequence[Row],
    uniform: Sequence[Row],
    windows: FindWindows,
    within: Collection[str] = (),
) -> Verdict:
    """Compare what is within a budget.

    The best of several mixes was chosen on the windows that it is compared on: its interval is as
    wide as Bonferroni's correction for so many makes it.

    Args:
        limit: The budget.
        mixes: Measured mixes.
        uniform: Measured uniform artifacts.
        windows: Gives the windows of a row's measurement.
        within: Names of all uniform candidates within it.
    """
    able = [_within(limit, rows) for rows in (mixes, uniform)]
    own, others = (tuple(sorted(rows, key=_order)) for rows in able)
    left = tuple(name for name in within if name not in {row.record.name for row in others})
    if not own:
        return Verdict(limit, own, others, "none" if others else "nothing", unmeasured=left)
    if not others:
        return Verdict(limit, own, others, "unrivalled" if within else "alone", unmeasured=left)
    value, low, high = _difference(own[0], others[0], windows, len(own))
    if low is None or high is None:
        word: Word = "untested"
    else:
        word = "better" if high < 0 else "worse" if low > 0 else "tie"
    return Verdict(limit, own, others, word, (value, low, high), left)


def _within(limit: Limit, rows: Sequence[Row]) -> list[Row]:
    found = []
    for row in rows:
        artifact = row.record.artifact
        if row.record.finished and artifact is not None and KLD.get(row) is not None:
            size = round(SIZE_GB.get(row) * 1e9)
            bpw = None if artifact.bpw is None else float(artifact.bpw)
            if limit.holds(size, bpw):
                found.append(row)
    return found


def _order(row: Row) -> tuple[float, float, str]:
    return float(KLD.get(row)), float(SIZE_GB.get(row)), row.key


def _difference(
    row: Row, other: Row, windows: FindWindows, chosen_from: int
) -> tuple[float, float | None, float | None]:
    value = KLD.get(row) - KLD.get(other)
    mine, its = windows(row), windows(other)
    if mine is None or its is None or mine.kld is None or its.kld is None:
        return value, None, None
    if not mine.same_tokens(its) or len(mine.tokens) < MIN_WINDOWS:
        return value, None, None
    found = difference(mine.draws("kld"), its.draws("kld"), mine.tokens)
    half = found.half(1 - (1 - CONFIDENCE) / chosen_from)
    return found.value, found.value - half, found.value + half
