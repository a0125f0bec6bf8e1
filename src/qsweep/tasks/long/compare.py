"""Long answers beside the reference's: how much longer, how many never end, and where they part. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from qsweep.base.errors import ArtifactCorrupt
from qsweep.tasks.long.survival import departure, survival
from qsweep.tasks.long_answers import LongAnswers
from qsweep.tasks.significance import REPLICATES, Interval, interval, resampled_means

Pairs = Sequence[tuple[LongAnswers, LongAnswers]]
# Points of a curve that a record keeps: beyond it no eye sees a difference.
_POINTS = 200


@dataclass(frozen=True)
class LongFigures:
    """What a model's long answers suffered.

    Attributes:
        problems: How many there are; ``samples`` are answers to them all.
        length: Tokens of a sampled answer, on average; of the reference's ``reference_length``.
        length_ratio: The one by the other, with its 95 % interval over problems and their samples.
        truncated: Share of samples that ran into the most tokens that were allowed.
        loops: Share that ends in a loop.
        reference_truncated: Of the reference's; ``reference_loops`` too.
        departed: Share of greedy answers that are not the reference's to the end.
        longest: Tokens of the longest answer that was compared, up to where it departed.
        divergence_token: The token by which half of them have departed, with its 95 % interval;
            None where fewer have.
        tokens: Where the curve of those that have not departed falls, and the share from there on.
        shares: See ``tokens``.
    """

    problems: int
    samples: int
    length: float
    reference_length: float
    length_ratio: float
    length_ratio_low: float
    length_ratio_high: float
    truncated: float
    loops: float
    reference_truncated: float
    reference_loops: float
    departed: float
    longest: int
    divergence_token: int | None = None
    divergence_token_low: int | None = None
    divergence_token_high: int | None = None
    tokens: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()


def compare_long(tasks: Sequence[Pairs]) -> LongFigures:
    """Compare the long answers of one task, or of several as one.

    A problem is what is drawn: its samples stand together, as their mean, so that the interval covers
    both which problems were asked and what was drawn for each (a cluster bootstrap; Field and Welsh,
    JRSS B 69, 2007; Miller, arXiv 2411.00640, of evaluations), and each is paired with its own. Of
    several tasks the ratio is the geometric mean, as each has lengths of its own; everything else
    is over all their answers.

    Args:
        tasks: By task, the model's answers and the reference's in its parts.

    Raises:
        ArtifactCorrupt: The two have other numbers of problems.
    """
    for own, base in chain.from_iterable(tasks):
        if len(own.greedy) != len(base.greedy):
            raise ArtifactCorrupt("the reference has long answers to other problems")
    every = list(chain.from_iterable(tasks))
    ours, theirs = [one for one, _ in every], [other for _, other in every]
    ratio = _length_ratio(tasks)
    parted = [
        departure(a, b)
        for one, other in every
        for a, b in zip(one.greedy, other.greedy, strict=True)
    ]
    times, departed = zip(*parted, strict=True)
    curve = survival(times, departed)
    step = -(-len(curve.tokens) // _POINTS) or 1
    return LongFigures(
        problems=len(parted),
        samples=len(_flat(one.lengths for one in ours)),
        length=_mean(one.lengths for one in ours),
        reference_length=_mean(one.lengths for one in theirs),
        length_ratio=ratio.value,
        length_ratio_low=ratio.low,
        length_ratio_high=ratio.high,
        truncated=_mean(one.truncated for one in ours),
        loops=_mean(one.loops for one in ours),
        reference_truncated=_mean(one.truncated for one in theirs),
        reference_loops=_mean(one.loops for one in theirs),
        departed=sum(departed) / len(departed),
        longest=max(times),
        divergence_token=curve.median,
        divergence_token_low=curve.low,
        divergence_token_high=curve.high,
        tokens=curve.tokens[::-step][::-1],
        shares=curve.shares[::-step][::-1],
    )


def _length_ratio(tasks: Sequence[Pairs]) -> Interval:
    import numpy

    value, replicates = 0.0, numpy.zeros(REPLICATES)
    for number, pairs in enumerate(tasks):
        lengths = [
            [sum(of) / len(of) for one in side for of in one.lengths]
            for side in zip(*pairs, strict=True)
        ]
        own, base = numpy.asarray(lengths)
        value += math.log(own.sum() / base.sum()) / len(tasks)
        drawn = resampled_means(numpy.stack([own, base], axis=1), seed=number)
        replicates += numpy.log(drawn[:, 0] / drawn[:, 1]) / len(tasks)
    return interval(math.exp(value), numpy.exp(replicates))


def _flat(answers: Iterable[Sequence[Sequence[float]]]) -> list[float]:
    return [value for of_task in answers for of_problem in of_task for value in of_problem]


def _mean(answers: Iterable[Sequence[Sequence[float]]]) -> float:
    values = _flat(answers)
    return sum(values) / len(values)
