"""Is it no worse than by a margin? Non-inferiority, measure by measure and in all. Pure.

That a difference is not significant does not say that there is none. Here the margin is stated
beforehand, and each measure is tested against it: *accept* where the whole one-sided 95 % bound of
its loss is within the margin, *reject* where the bound on the other side is beyond it, else
*inconclusive*, with how many windows or samples would decide.

All measures are accepted together by intersection and union: a trial that is worse by some measure
than its margin is accepted with a probability of at most 5 %, however many measures there are, and
no level need be corrected (Berger, "Multiparameter hypothesis testing and acceptance sampling",
Technometrics 24, 1982, 295-300). A single rejection has 5 % of its own.

A *loss* is how much worse a trial is, above 0: ln of the perplexity ratio, nats of divergence, or a
share of answers. Evidence of it has ``count``, ``value`` and ``bounds``; these also tell what bounds
another number of units would give, if trial and spread are truly what was measured.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from qsweep.evaluate.intervals import half_width, student_t

Outcome = Literal["accept", "reject", "inconclusive"]

LEVEL = 0.05
POWER = 0.8
# No more units than these are ever proposed.
_MOST = 10**9
_Z_LEVEL, _Z_POWER = 1.6448536, 0.8416212


class Evidence(Protocol):
    """What was measured of a loss."""

    @property
    def count(self) -> int:
        """Of how many windows or samples."""
        ...

    @property
    def value(self) -> float:
        """The measured loss."""
        ...

    def bounds(self, count: int | None = None, luck: float = 0.0) -> tuple[float, float]:
        """The lower and the upper one-sided 95 % bound of the loss.

        Args:
            count: With so many units of the same mean and spread instead of those measured.
            luck: Where their mean falls: 0 is on the truth; 1 and -1 are as far above and below it
                as it falls with a probability of 20 % (1 - :data:`POWER`).
        """
        ...


@dataclass(frozen=True)
class OfWindows:
    """A mean over windows: its bounds are t·sd/√n, or those of a confidence sequence.

    Attributes:
        value: The mean loss.
        sd: Spread of the windows' losses, so that the mean's error is sd/√n; None: a single window.
        count: How many windows.
        sequential: Whether one looked at them before their number was decided.
    """

    value: float
    sd: float | None
    count: int
    sequential: bool = False

    def bounds(self, count: int | None = None, luck: float = 0.0) -> tuple[float, float]:
        """See :class:`Evidence`."""
        n = self.count if count is None else count
        if self.sd is None or n < 2:
            return -math.inf, math.inf
        error = self.sd / math.sqrt(n)
        middle = self.value + luck * student_t(n - 1, 2 * POWER - 1) * error
        half = half_width(error, n, sequential=self.sequential, confidence=1 - 2 * LEVEL)
        return middle - half, middle + half


@dataclass(frozen=True)
class OfAnswers:
    """Right and wrong answers to the same samples, of which some changed.

    Bounds are Tango's score interval for the difference of paired proportions (Statistics in
    Medicine 17, 1998, 891-908) with a continuity correction of half a sample: it stands near
    scores of 0 and 1 and with few samples, where an interval of the t kind has no width. Over all
    outcomes of 12 to 400 samples and losses of 0 to 10 points its upper bound covers at least 95.3 %
    and its lower one 93.8 % (``bench/looks.py``); without the correction that one falls to 91 %.

    Attributes:
        lost: Samples that only the other model gets right.
        gained: Samples that only this one does.
        count: All samples.
    """

    lost: int
    gained: int
    count: int

    @property
    def value(self) -> float:
        """The loss as a share of samples."""
        return (self.lost - self.gained) / self.count

    def bounds(self, count: int | None = None, luck: float = 0.0) -> tuple[float, float]:
        """See :class:`Evidence`."""
        n = self.count if count is None else count
        changed = (self.lost + self.gained) / self.count
        error = math.sqrt(max(changed - self.value**2, 0.0) / n)
        loss = self.value + luck * _Z_POWER * error
        changed = max(changed, abs(loss))
        lost, gained = n * (changed + loss) / 2, n * (changed - loss) / 2
        return -_tango(gained, lost, n), _tango(lost, gained, n)


@dataclass(frozen=True)
class OfScores:
    """Differences of graded scores between 0 and 1 on the same samples.

    Bounds are a paired t interval after *plus four*: two samples wholly lost and two wholly gained
    are added to those measured, so that a loss which no sample happened to show is not taken for
    none (as Agresti and Coull do for a share: The American Statistician 52, 1998, 119-126).

    Attributes:
        value: Mean loss.
        square: Mean of the losses' squares.
        count: How many samples.
    """

    value: float
    square: float
    count: int

    def bounds(self, count: int | None = None, luck: float = 0.0) -> tuple[float, float]:
        """See :class:`Evidence`."""
        n = self.count if count is None else count
        if n < 2:
            return -1.0, 1.0
        spread = math.sqrt(max(self.square - self.value**2, 0.0) / n)
        loss = self.value + luck * _Z_POWER * spread
        mean = n * loss / (n + 4)
        # The spread is that of the truth, wherever the mean happens to fall.
        square = (n * (self.square - self.value**2 + loss**2) + 4) / (n + 4)
        half = student_t(n - 1, 1 - 2 * LEVEL) * math.sqrt((square - mean**2) / (n + 4))
        return max(-1.0, mean - half), min(1.0, mean + half)


@dataclass(frozen=True)
class Same:
    """One and the same result on both sides, as of an artifact and itself: there is no loss.

    Attributes:
        count: Of how many samples it is.
    """

    count: int
    value: float = 0.0

    def bounds(self, count: int | None = None, luck: float = 0.0) -> tuple[float, float]:
        """See :class:`Evidence`."""
        return 0.0, 0.0


@dataclass(frozen=True)
class Judged:
    """What is said of one measure.

    Attributes:
        outcome: Whether the loss is within the margin.
        value: The measured loss; ``low`` and ``high``: its one-sided 95 % bounds.
        margin: What it was compared with.
        count: Windows or samples.
        needed: As many decide it with a probability of 80 %, if the trial is what was measured;
            None: no number does, or it is decided.
        towards: What they would decide; None where no number decides.
    """

    outcome: Outcome
    value: float
    low: float
    high: float
    margin: float
    count: int
    needed: int | None = None
    towards: Outcome | None = None

    @property
    def more(self) -> int | None:
        """How many units more than were measured."""
        return None if self.needed is None else max(self.needed - self.count, 1)


def judge(evidence: Evidence, margin: float, least: int = 0) -> Judged:
    """Test a loss against a margin, on the same scale.

    Args:
        evidence: Of the loss.
        margin: 0 or more; a loss of as much is just within it.
        least: So many units are the fewest that may decide.
    """
    low, high = evidence.bounds()
    known = margin, evidence.count
    if evidence.count >= least and high <= margin:
        return Judged("accept", evidence.value, low, high, *known)
    if evidence.count >= least and low > margin:
        return Judged("reject", evidence.value, low, high, *known)
    needed, towards = _needed(evidence, margin, least)
    return Judged("inconclusive", evidence.value, low, high, *known, needed, towards)


def overall(outcomes: list[Outcome]) -> Outcome:
    """Of all measures together: one that is rejected rejects, and all must be accepted."""
    if "reject" in outcomes:
        return "reject"
    return "accept" if all(one == "accept" for one in outcomes) else "inconclusive"


def _needed(
    evidence: Evidence, margin: float, least: int
) -> tuple[int | None, Literal["accept", "reject"] | None]:
    """The fewest units that decide with the power, and what; None where none do."""
    within = evidence.value < margin or evidence.value == margin == 0.0

    def decides(count: int) -> bool:
        low, high = evidence.bounds(count, 1.0 if within else -1.0)
        return high <= margin if within else low > margin

    high = max(least, evidence.count, 2)
    while not decides(high):
        high *= 2
        if high > _MOST:
            return None, None
    low = max(least, 2) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high, "accept" if within else "reject"


def _tango(lost: float, gained: float, count: int) -> float:
    """The upper bound of (lost - gained) / count: the largest difference that its test lets pass.

    The score test's statistic uses the share of gains that is most likely where the difference is
    ``d``, the root of 2n·q² + B·q - gained·d·(1 - d) = 0 (Tango 1998, equations 5 to 7).
    """

    def passes(d: float) -> bool:
        b = (2 * count - lost + gained) * d - lost - gained
        c = -gained * d * (1 - d)
        q = (math.sqrt(max(b * b - 8 * count * c, 0.0)) - b) / (4 * count)
        spread = math.sqrt(max(count * (2 * q + d * (1 - d)), 0.0))
        return lost - gained - count * d + 0.5 >= -_Z_LEVEL * spread

    low, high = (lost - gained) / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return high
