"""Pure functions from tensors to the numbers of the protocol. docs/protocol.md explains them.

Notation: z are logits, p the reference's probabilities, q the measured model's. A window is a
*cluster*: its tokens share their context and are not independent, so every standard error here is
one over windows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsweep.evaluate.intervals import half_width
from qsweep.evaluate.verdicts import BOUNDS

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    Array = Tensor | ndarray

QUARTERS = ("q1", "q2", "q3", "q4")
"""What the quarters of a window are called, from its begin."""
FIFTHS = ("e1", "e2", "e3", "e4", "e5")
"""What the fifths of the tokens are called by the reference's entropy, from where it is lowest."""
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
# A perplexity ratio at which quality is 0: where degradation becomes "problematic".
_ZERO_QUALITY = BOUNDS[-1][0]


# --- per token, from logits --------------------------------------------------------------------


def nll(logits: "Tensor", targets: "Tensor") -> "Tensor":
    """Negative log-likelihood of each target, in nats: logits [n, vocab], targets [n] -> [n]."""
    return logits.float().logsumexp(-1) - _at(logits.float(), targets)


def kl_divergence(reference: "Tensor", measured: "Tensor") -> "Tensor":
    """KL(p || q) per row in nats, over the full vocabulary in fp32: two [n, vocab] -> [n].

    With m any shift, KL = sum p (z_p - z_q) - lse(z_p) + lse(z_q). Vocabularies that differ by
    padding are compared over the shared part, renormalised.
    """
    reference, measured = shared_vocabulary(reference, measured)
    zp, zq = reference.float(), measured.float()
    mean = (zp.softmax(-1) * (zp - zq)).sum(-1)
    return mean - zp.logsumexp(-1) + zq.logsumexp(-1)


def expected_acceptance(reference: "Tensor", measured: "Tensor") -> "Tensor":
    """1 - half of sum |p - q| per row in fp32: two [n, vocab] -> [n], from 0 to 1.

    The chance that a token drawn from q is kept where speculative decoding drafts with q for p
    (Leviathan, Kalman and Matias 2023, arXiv 2211.17192, corollary 3.6): 1 less the total variation.
    Vocabularies that differ by padding are compared over the shared part, renormalised.
    """
    reference, measured = shared_vocabulary(reference, measured)
    return 1 - (reference.float().softmax(-1) - measured.float().softmax(-1)).abs().sum(-1) / 2


def shared_vocabulary(first: "Tensor", second: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Both logits [..., vocab] cut to the vocabulary that they share, from its begin."""
    shared = min(first.shape[-1], second.shape[-1])
    return first[..., :shared], second[..., :shared]


def top1_agrees(reference: "Tensor", measured: "Tensor") -> "Tensor":
    """Whether the reference's most likely token is one of the measured model's: [n] of bool.

    A tie for the first place counts as agreement, as equal logits are common in bfloat16.
    """
    reference, measured = shared_vocabulary(reference, measured)
    return _at(measured, reference.argmax(-1)) == measured.amax(-1)


def _at(logits: "Tensor", tokens: "Tensor") -> "Tensor":
    return logits.gather(-1, tokens[..., None]).squeeze(-1)


# --- over windows ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """A mean per token with its standard error; None where a single window cannot tell it."""

    value: float
    stderr: float | None


def clustered_mean(sums: "Array", counts: "Array") -> Mean:
    """Mean per token of windows with these sums and token counts [windows], its error over windows.

    The mean is the ratio sum(S)/sum(n); its error is the linearised ratio estimator's,
    sqrt(W/(W-1) * sum (S_w - n_w mean)^2) / sum(n) (Cochran, Sampling Techniques, 6.3 and 9A.7),
    which for windows of equal length is sd(window means)/sqrt(W).
    """
    sums, counts = _float64(sums), _float64(counts)
    total, windows = counts.sum(), len(counts)
    mean = sums.sum() / total
    if windows < 2:
        return Mean(float(mean), None)
    squares = ((sums - counts * mean) ** 2).sum() * windows / (windows - 1)
    return Mean(float(mean), float(squares**0.5 / total))


def window_sums(values: "Tensor", counts: "Tensor") -> "Tensor":
    """Sum per-token values [tokens] over windows of these counts: float64 [windows]."""
    import torch

    windows = torch.repeat_interleave(torch.arange(len(counts)), counts)
    zeros = torch.zeros(len(counts), dtype=torch.float64)
    return zeros.index_add_(0, windows, values.double())


def perplexity(sums: "Tensor", counts: "Tensor") -> Mean:
    """exp(sum of NLL / number of tokens) of sums in nats and token counts, both [windows].

    Its error is the delta method's: ppl * error of the logarithm.
    """
    log = clustered_mean(sums, counts)
    value = exponential(log.value)
    return Mean(value, None if log.stderr is None else value * log.stderr)


@dataclass(frozen=True)
class Ratio:
    """Quantized over reference perplexity with its paired interval (0 to infinity if unknown)."""

    value: float
    low: float
    high: float


def ppl_ratio(
    sums: "Array", reference_sums: "Array", counts: "Array", *, sequential: bool = False
) -> Ratio:
    """Perplexity ratio of two models on the same windows: exp(mean d ± t sd/sqrt(W)).

    d is a window's mean difference of NLL; windows weigh by their scored tokens. Pairing removes
    what is common to both models, how hard each window's text is. Sums of NLL in nats and counts of
    tokens are [windows]. ``sequential``: whether the number of windows was decided by looking at
    them; the interval is then that of a confidence sequence (:mod:`qsweep.evaluate.intervals`).
    """
    difference = clustered_mean(_float64(sums) - _float64(reference_sums), counts)
    if difference.stderr is None:
        return Ratio(exponential(difference.value), 0.0, math.inf)
    half = half_width(difference.stderr, len(counts), sequential=sequential)
    return Ratio(
        exponential(difference.value),
        exponential(difference.value - half),
        exponential(difference.value + half),
    )


def quantiles(values: "Tensor") -> Iterator[tuple[str, float]]:
    """Median, p90, p99, p999 and max of per-token values [tokens], linearly interpolated."""
    import numpy

    found = numpy.quantile(values.double().numpy(), list(QUANTILES.values()))
    yield from zip(QUANTILES, map(float, found), strict=True)


def by_quarter(values: "Array", positions: "Array", context: int) -> Iterator[tuple[str, float]]:
    """Means of per-token values over each quarter of their windows' positions that has any.

    A token's quarter is where it stands in its window, so how much it is predicted from. A preset
    that scores the second half alone has no first two quarters.

    Args:
        values: Of the scored tokens in order, [tokens].
        positions: Where each stands in its window, from 0, [tokens].
        context: Positions of a whole window.
    """
    import numpy

    yield from _means(values, numpy.asarray(positions) * len(QUARTERS) // context, QUARTERS)


def by_entropy(values: "Array", entropy: "Array") -> Iterator[tuple[str, float]]:
    """Means of per-token values over each fifth of the tokens by the reference's entropy.

    Fifths hold equally many tokens but for equal entropies, which stay together: one may be empty
    and is left out then. Both are [tokens].
    """
    import numpy

    entropy = numpy.asarray(entropy, dtype="float64")
    inner = [number / len(FIFTHS) for number in range(1, len(FIFTHS))]
    bounds = numpy.quantile(entropy, inner)
    yield from _means(values, numpy.searchsorted(bounds, entropy, side="left"), FIFTHS)


def end_positions(counts: "Array", context: int) -> "ndarray":
    """Positions of the scored tokens of windows that are whole and scored to their end, [tokens].

    ``counts`` are their scored tokens, [windows].
    """
    import numpy

    return numpy.concatenate([numpy.arange(context - int(n), context) for n in counts])


def _means(values: "Array", parts: "ndarray", names: Sequence[str]) -> Iterator[tuple[str, float]]:
    import numpy

    values = numpy.asarray(values, dtype="float64")
    for number, name in enumerate(names):
        if (chosen := parts == number).any():
            yield name, float(values[chosen].mean())


def rms(values: "Tensor") -> float:
    """Root of the mean square of values [tokens]."""
    return float(values.double().square().mean().sqrt())


# --- what it means -----------------------------------------------------------------------------


def quality(ratio: float) -> float:
    """1 for the reference, 0 at a perplexity ratio of 1.20, negative beyond: 1 - ln r / ln 1.20."""
    if not ratio > 0:
        return math.nan
    return min(1.0, 1.0 - math.log(ratio) / math.log(_ZERO_QUALITY))


def quality_per_gb(value: float, size_gb: float) -> float:
    """Quality per gigabyte of weights where quality is positive, else quality itself."""
    return value / size_gb if value > 0 else value


def _float64(values: Any) -> Any:
    # Of torch where a model was measured, of numpy where measurements are compared without torch.
    return values.double() if hasattr(values, "double") else values.astype("float64")


def exponential(value: float) -> float:
    """exp, infinite where that is beyond a float."""
    # A broken model's perplexity may be beyond what a float holds.
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
