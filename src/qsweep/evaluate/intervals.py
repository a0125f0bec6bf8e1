"""How far an interval reaches: at one number of windows, or at every number at once. Pure.

Student's t is for a number of windows that was settled before. Who looks at a t interval again and again, and stops when he likes what he sees, is wrong far more
often than it says. A *confidence sequence* covers at all numbers of windows together with its
probability, so that any rule of stopping, or none, leaves it true. This one is Student's t interval
with another multiplier: of a t statistic T over n windows the e-process

    E_n = sqrt(r) · ((1 + T²/(n-1)) / (1 + r·T²/(n-1)))^(n/2),      r = phi / (phi + n)

(a normal mixture over the effect's size with precision phi, invariant to the spread) exceeds
1/alpha at any n with a probability of at most alpha, exactly so for normal differences whose spread
is not known; what it does not exclude are the means with E_n < 1/alpha (Lai, Ann. Statist. 4, 1976;
Wang and Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown
variance", arXiv 2310.03722; Lindon, Ham, Tingley and Bojinov, arXiv 2210.08589, in this form). For
other differences it holds as the number of windows that one begins at grows (Waudby-Smith, Arbour,
Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences",
Ann. Statist. 52, 2024). ``bench/looks.py`` says by how much it is off for few windows.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import ndarray

CONFIDENCE = 0.95
# The mixture's precision: the interval is tightest, against that of a single look, at about eight
# times as many windows, and loses little from 40 to 1000.
PHI = 12.0


def half_width(
    error: float, windows: int, *, sequential: bool = False, confidence: float = CONFIDENCE
) -> float:
    """How far an interval reaches to either side of a mean.

    Args:
        error: The mean's standard error.
        windows: How many it rests on, at least two.
        sequential: Whether their number was decided by looking at them.
        confidence: Of both sides together.
    """
    reach = (sequence_t if sequential else _single_look)(windows, confidence)
    # A sequence that excludes nothing yet excludes nothing, were the windows all alike.
    return reach * error if math.isfinite(reach) else math.inf


def student_t(freedom: float, confidence: float = CONFIDENCE) -> float:
    """The t beyond which a Student's t of so many degrees of freedom lies in 1 - confidence."""
    from scipy.special import stdtrit

    if freedom < 1:
        raise ValueError("at least one degree of freedom")
    return float(stdtrit(freedom, (1 + confidence) / 2))


def sequence_t(windows: int, confidence: float = CONFIDENCE) -> float:
    """The multiplier of a standard error over so many windows that holds at all numbers at once.

    Infinite where there are too few windows to exclude anything.
    """
    r, alpha = PHI / (PHI + windows), 1 - confidence
    k = (r * alpha**2) ** (1 / windows)
    return math.sqrt((windows - 1) * (1 - k) / (k - r)) if k > r and windows > 1 else math.inf


def sequence_p(t: "ndarray", windows: "ndarray") -> "ndarray":
    """Two-sided p-values of t statistics [pairs] over so many windows each, valid at any stop.

    The least alpha at which the sequence excludes no difference: min(1, 1/E).
    """
    import numpy as np

    r, known = PHI / (PHI + windows), np.isfinite(t)
    u = np.where(known, t, 0.0) ** 2 / np.maximum(windows - 1, 1)
    log_e = np.log(r) / 2 + windows / 2 * (np.log1p(u) - np.log1p(r * u))
    # Differences that are all the same, and not 0, are no noise.
    return np.where(known, np.exp(-np.maximum(log_e, 0.0)), 0.0)


def is_sequential(facts: Mapping[str, Any]) -> bool:
    """Whether a measurement's facts say that it read windows until its interval was narrow enough."""
    return bool(facts.get("until"))


def _single_look(windows: int, confidence: float) -> float:
    return student_t(windows - 1, confidence)
