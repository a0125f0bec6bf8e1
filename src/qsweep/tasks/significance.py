"""Is a difference more than chance? Pure functions on the scores of two models on the same samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Resamples of the bootstrap; the ends of a 95 % interval then lie within about 1 % of its width.
REPLICATES = 4000
_SEED = 7
# Of the tests planned for: two-sided 5 %, power 80 %.
_Z_LEVEL, _Z_POWER = 1.959964, 0.841621


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def paired_replicates(
    scores: Sequence[float], reference: Sequence[float], replicates: int = REPLICATES
) -> tuple["NDArray", "NDArray"]:
    """Means of both models over resampled samples: two arrays [replicates].

    Samples are drawn in pairs, with replacement (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 8). Equal pairs of scores are drawn as one by the multinomial
    distribution, which is the same and, for right and wrong answers, quick.

    A model that fails on all samples, or on none, would come out of every resample the same, as if
    that was certain; where the reference differs, its share is drawn from Jeffreys' posterior
    instead (Brown, Cai and DasGupta, Statistical Science 16, 2001).
    """
    import numpy

    pairs = numpy.stack([numpy.asarray(scores, float), numpy.asarray(reference, float)], axis=1)
    rng = numpy.random.default_rng(_SEED)
    means = _drawn_means(pairs, rng, replicates)
    own = set(pairs[:, 0])
    if own in ({0.0}, {1.0}) and set(pairs[:, 1]) != own:
        right = pairs[:, 0].sum()
        means[:, 0] = rng.beta(right + 0.5, len(pairs) - right + 0.5, size=replicates)
    return means[:, 0], means[:, 1]


def resampled_means(rows: "NDArray", seed: int = 0, replicates: int = REPLICATES) -> "NDArray":
    """Means of columns over resampled rows: float [samples, columns] to [replicates, columns].

    ``seed`` sets apart what is drawn beside each other.
    """
    import numpy

    return _drawn_means(rows, numpy.random.default_rng([_SEED, seed]), replicates)


def _drawn_means(rows: "NDArray", rng: Any, replicates: int) -> "NDArray":
    import numpy

    kinds, counts = numpy.unique(rows, axis=0, return_counts=True)
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=replicates)
    return drawn @ kinds / counts.sum()


def interval(value: float, replicates: "NDArray") -> Interval:
    """The 95 % percentile interval of a value's bootstrap replicates, float [replicates]."""
    import numpy

    low, high = numpy.quantile(replicates, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def mcnemar(better: int, worse: int) -> float:
    """McNemar's exact two-sided p: of the samples that changed, could half be better by chance?

    Args:
        better: Samples that only the measured model gets right.
        worse: Samples that only the reference gets right.
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5)))


def sign_flip(differences: Sequence[float], replicates: int = 20_000) -> float:
    """Two-sided p of a mean difference by random sign flips, for scores between 0 and 1."""
    import numpy

    values = numpy.asarray([d for d in differences if d != 0], float)
    if len(values) == 0:
        return 1.0
    rng = numpy.random.default_rng(_SEED)
    observed, extreme, step = abs(values.sum()), 0, max(1, 2_000_000 // len(values))
    for begin in range(0, replicates, step):
        rows = min(step, replicates - begin)
        signs = rng.integers(0, 2, size=(rows, len(values))) * 2 - 1
        extreme += int((abs(signs @ values) >= observed * (1 - 1e-12)).sum())
    return (extreme + 1) / (replicates + 1)


def paired_p(scores: Sequence[float], reference: Sequence[float]) -> tuple[float, str]:
    """The p of no difference, and the test's name: McNemar's for right and wrong, else sign flips."""
    if set(scores) | set(reference) <= {0.0, 1.0}:
        better = sum(s > r for s, r in zip(scores, reference, strict=True))
        worse = sum(s < r for s, r in zip(scores, reference, strict=True))
        return mcnemar(better, worse), "mcnemar"
    differences = [s - r for s, r in zip(scores, reference, strict=True)]
    return sign_flip(differences), "sign flips"


def samples_needed(changed: float, loss: float) -> int:
    """How many samples show a loss with 80 % power at 5 %, by McNemar's test.

    Connor (Biometrics 43, 1987): n = (z_a sqrt(f) + z_b sqrt(f - d^2))^2 / d^2.

    Args:
        changed: Share of samples on which the two models differ, f.
        loss: The loss to be shown, d, as a share of all samples.
    """
    # A loss of d needs that share of changed samples at the very least.
    changed = max(changed, loss)
    root = _Z_LEVEL * math.sqrt(changed) + _Z_POWER * math.sqrt(max(changed - loss**2, 0.0))
    return math.ceil((root / loss) ** 2)


def wilson(score: float, count: int) -> Interval:
    """Wilson's 95 % interval of a share, or of a mean of scores between 0 and 1.

    scipy's own takes whole counts only.
    """
    z2 = _Z_LEVEL**2
    middle = (score + z2 / (2 * count)) / (1 + z2 / count)
    spread = score * (1 - score) / count + z2 / (4 * count**2)
    half = _Z_LEVEL * math.sqrt(spread) / (1 + z2 / count)
    return Interval(score, max(0.0, middle - half), min(1.0, middle + half))


def measurable(score: float, chance: float, count: int) -> bool:
    """Whether a reference is so far above chance that a loss could be seen at all.

    Its 95 % interval must lie above chance, by a point: the ability is then no luck.
    """
    return count > 0 and wilson(score, count).low > chance + 0.01
