"""Whether something has the most quality per GB, and why it cannot be said where it cannot. Pure.

One rule decides for the terminal, the pages, the tracker and a search. Of those that cannot be told
apart in quality from the one with the most quality per GB, the smallest leads: what they are told
apart by is size alone. It is called the best only if

- it was measured on enough windows for its interval to be one (:data:`MIN_WINDOWS`),
- that interval is narrower than the scale of verdicts, a ratio of 1 to 1.20, and
- its lead over each one that is told apart from it is beyond noise: larger than sqrt(a² + b²), where
  a and b are how far the two intervals reach towards each other (the interval of a difference from
  those of its parts: Zou and Donner 2008, Statistics in Medicine 27). The trials share windows and
  reference, so their errors are positively correlated, and this errs on the side of silence.

Whether two can be told apart in quality is known of their windows (:mod:`qsweep.results.ties`); where
these are not at hand nothing is a tie.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qsweep.base import numbers
from qsweep.evaluate.intervals import is_sequential
from qsweep.evaluate.verdicts import BOUNDS
from qsweep.results.columns.table import (
    PPL_RATIO,
    PPL_RATIO_HIGH,
    PPL_RATIO_LOW,
    QUALITY_PER_GB,
    SIZE_GB,
    WINDOWS,
)
from qsweep.results.record import Measurement

MIN_WINDOWS = 8
"""Over fewer windows the spread that an interval is made from is itself a guess."""

CONTEND_BY = (QUALITY_PER_GB, SIZE_GB, PPL_RATIO, PPL_RATIO_LOW, PPL_RATIO_HIGH, WINDOWS)
"""The columns that decide, and how far they can be trusted."""

_SCALE = math.log(BOUNDS[-1][0])

# Whether two trials, by their keys, can be told apart in quality; None where that is not known.
Tell = Callable[[str, str], bool | None]


@dataclass(frozen=True)
class Contender:
    """One that may be the best.

    Attributes:
        key: tells it apart.
        name: what it is called.
        per_gb: quality per GB; ``low`` and ``high`` where it lies by its interval, infinite where
            nothing is known.
        ratio: perplexity ratio, its low and its high end; ends are None where nothing is known.
        size_gb: its size; None where that is not known.
        windows: how many it was measured on; None where that is not known.
        cut: whether the configuration asked for fewer windows than the text has.
        setting: equal for those that differ only in a seed; empty where that is not known.
        silent: whether it is so close to the reference that nothing ranks it but size.
        draws: how many its figures are the mean of.
        stopped: whether ``eval.until`` says how many windows were read.
    """

    key: str
    name: str
    per_gb: float
    low: float
    high: float
    ratio: tuple[float | None, float | None, float | None]
    size_gb: float | None = None
    windows: int | None = None
    cut: bool = False
    setting: str = ""
    silent: bool = False
    draws: int = 1
    stopped: bool = False


@dataclass(frozen=True)
class Decision:
    """Which one leads, and whether it is the best.

    ``leader`` is the key of the one that leads, None where there is none. ``open`` says why it is not
    called the best; None where it is. ``note`` says what its lead rests on. ``tied`` are the keys of
    those that it cannot be told apart from in quality.
    """

    leader: str | None
    open: str | None = None
    note: str = ""
    tied: tuple[str, ...] = ()

    @property
    def winner(self) -> str | None:
        """The key of the best; None where nothing is."""
        return self.leader if self.open is None else None


def contender(
    key: str, name: str, figures: Mapping[str, Any], setting: str = ""
) -> Contender | None:
    """A contender from figures by their names in ``results.csv``; None without quality per GB.

    ``windows_cut`` among them says that fewer windows were asked for than there are, ``silent`` that
    it lies in the silent zone, in which all have the reference's quality, ``draws`` how many it is the
    mean of, ``stopped`` that ``eval.until`` says how many windows were read.
    """
    from qsweep.evaluate.metrics import quality, quality_per_gb

    value, size, ratio, *ends, windows = (figures.get(column.name) for column in CONTEND_BY)
    if value is None or not math.isfinite(value) or not _is_ratio(ratio):
        return None
    silent = bool(figures.get("silent") and size)
    if silent and size:
        value = quality_per_gb(1.0, size)
    low, high = -math.inf, math.inf
    if not all(map(_is_ratio, ends)):
        ends = [None, None]
    elif silent:
        low = high = value
    elif size:
        high, low = (quality_per_gb(quality(end), size) for end in ends)  # type: ignore[arg-type]
    return Contender(
        key=key,
        name=name,
        per_gb=value,
        low=min(low, value),
        high=max(high, value),
        ratio=(ratio, *ends),  # type: ignore[arg-type]
        size_gb=size,
        windows=windows,
        cut=bool(figures.get("windows_cut")),
        setting=setting,
        silent=silent,
        draws=figures.get("draws") or 1,
        stopped=bool(figures.get("stopped")),
    )


def how_many_read(measurement: Measurement | None) -> dict[str, bool]:
    """What else decides how many windows a measurement has, as :func:`contender` takes it."""
    return {
        "windows_cut": measurement is not None and measurement.windows_cut,
        "stopped": measurement is not None and is_sequential(measurement.facts),
    }


def _is_ratio(value: Any) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def decide(contenders: Sequence[Contender], tell: Tell = lambda *_: None) -> Decision:
    """The one with the most quality per GB, and whether that is beyond noise.

    Args:
        contenders: In any order.
        tell: whether two, by their keys, can be told apart in quality; None where that is not known.
    """
    if not contenders:
        return Decision(None)
    most = min(contenders, key=lambda c: (-c.per_gb, c.name, c.key))
    alike = [c for c in contenders if c.key == most.key or _are_alike(most, c, tell)]
    leader = min(alike, key=lambda c: (_size(c), -c.per_gb, c.name, c.key))
    tied = [c for c in alike if c.key != leader.key]
    others = [c for c in contenders if c not in alike]
    reason = says_nothing(leader) or _too_near(leader, others)
    note = "; ".join(filter(None, (_of_a_tie(tied), _luck(leader, [*tied, *others]))))
    return Decision(leader.key, reason, note, tuple(c.key for c in tied))


def _are_alike(one: Contender, other: Contender, tell: Tell) -> bool:
    """Whether two cannot be told apart in quality, though both were measured well.

    That their intervals overlap is not enough: it does not say that their difference is in doubt.
    """
    if says_nothing(one) or says_nothing(other):
        return False
    return (one.silent and other.silent) or tell(one.key, other.key) is False


def _size(one: Contender) -> float:
    return math.inf if one.size_gb is None else one.size_gb


def _of_a_tie(tied: Sequence[Contender]) -> str:
    if not tied:
        return ""
    near = min(tied, key=lambda c: (-c.per_gb, c.name))
    more = f" and {len(tied) - 1} more" if len(tied) > 1 else ""
    return f"{near.name}{more} cannot be told from it in quality, and none of them is smaller"


def says_nothing(one: Contender) -> str | None:
    """Why an interval tells nothing of what it is an interval of, and what to do; None if it does."""
    return _too_few(one) or _too_wide(one)


def sentence(decision: Decision, leader: str) -> str:
    """The answer in a line: who is the best, or who leads and why that is not said.

    ``leader`` is the leading one in words. What to do about it is part of the line.
    """
    note = f"; {decision.note}" if decision.note else ""
    if decision.open is None:
        return f"{leader}{note}"
    return f"no winner: {leader} leads, but {decision.open}{note}"


def _too_few(leader: Contender) -> str | None:
    if leader.windows is None or leader.windows >= MIN_WINDOWS:
        return None
    count = "1 window decides" if leader.windows == 1 else f"{leader.windows} windows decide"
    return f"{count} nothing, {MIN_WINDOWS} are the least; {_more_windows(leader)}"


def _too_wide(leader: Contender) -> str | None:
    _, low, high = leader.ratio
    if not low or not high or not math.log(high / low) > _SCALE:
        return None
    return (
        f"its ratio may be anything from {numbers.ratio(low)} to {numbers.ratio(high)}, more than all "
        f"verdicts from 1 to {BOUNDS[-1][0]:.2f} span; {_more(leader)}"
    )


def _too_near(leader: Contender, others: Sequence[Contender]) -> str | None:
    near = [other for other in others if not _beyond(leader, other)]
    near.sort(key=lambda other: -other.per_gb)
    if near:
        more = f" and {len(near) - 1} more are" if len(near) > 1 else " is"
        return f"{near[0].name}{more} within noise of it; {_more(leader)}, or go by size"
    draws = [other for other in others if leader.setting and other.setting == leader.setting]
    if draws:
        # One draw of a setting says little where others of it fall behind another setting.
        worst = min(draws, key=lambda other: other.per_gb)
        between = [o for o in others if o not in draws and o.per_gb >= worst.per_gb]
        if between:
            return (
                f"another draw of the same setting falls behind {between[0].name}: the seed decides"
            )
    return None


def _beyond(leader: Contender, other: Contender) -> bool:
    noise = math.hypot(leader.per_gb - leader.low, other.high - other.per_gb)
    return leader.per_gb - other.per_gb > noise


def _luck(leader: Contender, others: Sequence[Contender]) -> str:
    draws = [other for other in others if leader.setting and other.setting == leader.setting]
    ratios = [c.ratio[0] for c in (leader, *draws) if c.ratio[0] is not None]
    if not draws or not ratios:
        return ""
    return (
        f"it is the luckiest of {len(draws) + 1} draws that differ in their seed alone (ratio "
        f"{numbers.ratio(min(ratios))} to {numbers.ratio(max(ratios))})"
    )


def _more(leader: Contender) -> str:
    return f"{'give more seeds, or ' * (leader.draws > 1)}{_more_windows(leader)}"


def _more_windows(leader: Contender) -> str:
    if leader.stopped:
        return "give a narrower eval.until, or leave it out"
    if leader.cut:
        return "raise eval.max_windows, or leave it out"
    return "measure more text (corpus=), or shorter windows (eval.context)"
